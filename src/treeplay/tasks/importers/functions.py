"""The functions that two versions of a file have, differently, by tree-sitter's grammars."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from ast_grep_py import SgNode, SgRoot

FUNCTIONS = {
    "python": ("function_definition",),
    "c": ("function_definition",),
    "cpp": ("function_definition",),
    "javascript": (
        *("function_declaration", "generator_function_declaration", "method_definition"),
        *("function_expression", "arrow_function", "generator_function"),
    ),
    "go": ("function_declaration", "method_declaration"),
    "java": ("method_declaration", "constructor_declaration"),
    "ruby": ("method", "singleton_method"),
    "rust": ("function_item",),
    "php": ("function_definition", "method_declaration"),
}
# What may be around a function and is still one with it.
_AROUND = (
    *("decorated_definition", "export_statement", "lexical_declaration", "variable_declaration"),
    *("expression_statement", "variable_declarator", "assignment_expression", "pair"),
    *("arguments", "call_expression"),
)
_Name = tuple[str, ...]  # what it stands in, and its own


def changed_functions(language: str, before: str, after: str) -> Iterator[tuple[str, str, str]]:
    """(name, text before, text after) of every outermost function that both have, differently.

    Of several with one name in one place (overloads) those that are alike are taken away; what is
    left is a pair where it is one of each side.
    """
    old, new = _functions(language, before), _functions(language, after)
    for name, texts in new.items():
        gone = list((Counter(old.get(name, ())) - Counter(texts)).elements())
        come = list((Counter(texts) - Counter(old.get(name, ()))).elements())
        if len(gone) == len(come) == 1:
            yield name[-1], gone[0], come[0]


def _functions(language: str, program: str) -> dict[_Name, list[str]]:
    """The outermost functions of a program by name, whole lines of text."""
    found: dict[_Name, list[str]] = defaultdict(list)
    lines = program.split("\n")
    nothing: _Name = ()
    stack = [(SgRoot(program, language).root(), nothing)]
    while stack:
        node, names = stack.pop()
        own = _own_name(node) if node.kind() in FUNCTIONS[language] else ""
        if not own:
            inside = node.field("type" if node.kind() == "impl_item" else "name")
            inner = names if inside is None else (*names, inside.text())
            stack += [(child, inner) for child in reversed(node.children())]
            continue
        receiver = node.field("receiver")  # Go
        where = names if receiver is None else (*names, receiver.text().strip("()").split()[-1])
        whole = _whole(node)
        first, last = whole.range().start, whole.range().end
        alone = not lines[first.line][: first.column].strip()
        text = "\n".join(lines[first.line : last.line + 1]) if alone else whole.text()
        which = (*where, own)
        found[which].append(text.rstrip() + "\n")
    return found


def _own_name(function: SgNode) -> str:
    """A function's name. C declares it inside what it returns, JavaScript where it is put; "" for
    one that is put nowhere: it is a part of what is around it."""
    named = function.field("name")
    if named is not None:
        return str(named.text())
    declared = function.field("declarator")
    while declared is not None and (inner := declared.field("declarator")) is not None:
        declared = inner
    if declared is not None:
        return str(declared.text())
    around = function.parent()
    if around is None:
        return ""
    if around.kind() == "arguments":
        call = around.parent()
        texts = [child for child in around.children() if child.kind() == "string"]
        called = call.field("function") if call is not None else None
        return f"{called.text()}({texts[0].text()}" if called is not None and texts else ""
    named = next((n for f in ("name", "left", "key") if (n := around.field(f)) is not None), None)
    return str(named.text()) if named is not None else ""


def _whole(function: SgNode) -> SgNode:
    """The statement that a function is, with decorators."""
    whole = function
    while (above := whole.parent()) is not None and above.kind() in _AROUND:
        whole = above
    return whole

"""The analysers, each behind the same face (:class:`~treeplay.judge.tools.base.Tool`)."""

from treeplay.judge.tools.bandit import BANDIT
from treeplay.judge.tools.base import Tool
from treeplay.judge.tools.clang_tidy import CLANG_TIDY
from treeplay.judge.tools.cppcheck import CPPCHECK
from treeplay.judge.tools.eslint import ESLINT
from treeplay.judge.tools.gcc import GCC
from treeplay.judge.tools.semgrep import SEMGREP
from treeplay.judge.tools.structural import RULES

TOOLS: tuple[Tool, ...] = (RULES, BANDIT, SEMGREP, CPPCHECK, GCC, CLANG_TIDY, ESLINT)

"""How a whole answer ends.

An answer that is learnt whole without its end teaches a model to write on for ever: it then says
everything twice, and what is cut off by the token budget does not parse. So a whole answer that
nothing follows in the program is closed: in chat style by the fence that the prompt opened, and in
either style by the tokenizer's end mark, as fine-tuning libraries do. (A model that completes text
may seldom have written that mark there; it is what stops sampling.) An answer in the middle of a
program (``task.suffix``) stays open, for there the program goes on.
"""

from __future__ import annotations

from treeplay.policy.model import Policy, decode, encode_path, encode_tail
from treeplay.tasks.task import Task

Ids = tuple[int, ...]


def closed(policy: Policy, task: Task, ids: Ids) -> Ids:
    """``ids``, the token ids of a whole answer behind ``task``'s prompt, with those that close it.

    Nothing is tokenised anew but a last token that the fence joins (a bracket and a line break are
    one token to many models): the joined one takes its place, as the model would have written it.
    """
    if task.suffix.strip() or not ids:
        return ids
    if policy.style == "chat":
        ids = _fenced(policy, task, ids)
    end = policy.tokenizer.eos_token_id
    return ids if end is None else (*ids, end)


def _fenced(policy: Policy, task: Task, ids: Ids) -> Ids:
    answer = decode(policy, ids)  # of sampled ids, which may end before or behind the answer does
    fence = "```" if answer.endswith("\n") else "\n```"
    path = encode_path(policy, task, answer + fence)
    whole = path.ids[path.n_prompt :]
    last = len(ids) - 1
    if whole[:last] == ids[:last]:
        text = decode(policy, ids[last:]) + fence
        if decode(policy, whole[last:]) == text:
            return whole
    return ids + tuple(encode_tail(policy, fence)[0])

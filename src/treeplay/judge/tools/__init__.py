"""The analysers, each behind the same face (:class:`~treeplay.judge.tools.base.Tool`)."""

from treeplay.judge.tools.bandit import BANDIT
from treeplay.judge.tools.base import Tool
from treeplay.judge.tools.semgrep import SEMGREP
from treeplay.judge.tools.structural import RULES

TOOLS: tuple[Tool, ...] = (RULES, BANDIT, SEMGREP)

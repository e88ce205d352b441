from treeplay.judge.tools.bandit import bandit_covers, bandit_version, run_bandit  # noqa: F401

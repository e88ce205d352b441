"""``python -m treeplay``."""

from treeplay.cli import main

main()

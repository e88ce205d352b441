"""Which commit has the code that a result names: looks through the history for its digest.

    python scripts/code_of.py e4cfc70715890b96

Results and the results page name code by :func:`treeplay.run.code_digest`, which an installed
package can work out as well. This works the same digest out for every commit, the latest first.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = PurePosixPath("src/treeplay")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("digests", nargs="+")
    parser.add_argument("--last", type=int, default=-1, help="look through so many changes only")
    args = parser.parse_args()
    wanted = dict.fromkeys(args.digests)
    limit = f"--max-count={args.last}"
    for commit in git("log", limit, "--format=%H", "--", f"{PACKAGE}/*.py").decode().split():
        digest = digest_of(commit)
        if digest in wanted:
            told = git("log", "-1", "--format=%h %ad %s", "--date=short", commit)
            print(digest, told.decode().strip())
            del wanted[digest]
        if not wanted:
            return
    sys.exit(f"not in this history: {', '.join(wanted)}")


def digest_of(commit: str) -> str:
    """The digest of a commit's Python source, as :func:`treeplay.run.code_digest` has it."""
    archive = git("archive", "--format=tar", commit, str(PACKAGE))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {
            str(PurePosixPath(member.name).relative_to(PACKAGE)): member
            for member in tar
            if member.isfile() and member.name.endswith(".py")
        }
        found = hashlib.sha256()
        for name in sorted(files, key=lambda name: PurePosixPath(name).parts):
            content = tar.extractfile(files[name])
            assert content is not None
            found.update(name.encode() + content.read())
    return found.hexdigest()[:16]


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()

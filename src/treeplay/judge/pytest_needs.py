"""The third-party packages that published tests and their programs use, and which are here.

``scripts/cweval-packages.sh`` installs them: Debian's packages for C, C++ and Go, npm's in a folder
of treeplay's, Python's beside treeplay.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

SCRIPT = "scripts/cweval-packages.sh"
# The checker of regular expressions that some tests start.
HELPER = "third_party/recheck-linux-x64"
_GO_V5, _GO_V4 = "github.com/golang-jwt/jwt/v5", "github.com/golang-jwt/jwt"
GO_PACKAGES = (
    "github.com/mattn/go-sqlite3",
    "github.com/ChrisTrenkamp/goxpath",
    "github.com/ChrisTrenkamp/goxpath/tree",
    "github.com/ChrisTrenkamp/goxpath/tree/xmltree",
    "golang.org/x/crypto/pbkdf2",
    "golang.org/x/crypto/argon2",
    "golang.org/x/crypto/bcrypt",
    "golang.org/x/crypto/scrypt",
)
# Header (its beginning), Debian's package, what the compiler needs.
HEADERS = (
    ("sqlite3.h", "libsqlite3-dev", ("-lsqlite3",)),
    ("jwt.h", "libjwt-dev", ("-ljwt",)),
    ("openssl/", "libssl-dev", ("-lssl", "-lcrypto")),
    ("archive.h", "libarchive-dev", ("-larchive",)),
    ("libxml/", "libxml2-dev", ("-I/usr/include/libxml2", "-lxml2")),
)
PYTHON = {
    "Crypto": "pycryptodome",
    "argon2": "argon2-cffi",
    "jwt": "PyJWT",
    "lxml": "lxml",
    "pytest": "pytest",
    "wrapt_timeout_decorator": "wrapt_timeout_decorator",
    "yaml": "PyYAML",
}
NODE = (
    "argon2",
    "escape-html",
    "escape-string-regexp",
    "js-yaml",
    "jsdom",
    "jsonwebtoken",
    "lodash",
    "node-rsa",
    "sqlite3",
    "xpath",
)


@dataclass(frozen=True)
class Needs:
    """``missing``: what a program and its test use and is not here, in words, "" for nothing.
    ``flags``: what the C or C++ compiler is given for it."""

    missing: str
    flags: tuple[str, ...] = ()


def find_needs(language: str, program: str, test: str) -> Needs:
    """What the two texts name among the packages known here."""
    missing = [
        f"{name} for Python" for name in _python(test, program if language == "python" else "")
    ]
    if HELPER in test and not (node_modules().parent / HELPER).is_file():
        missing.append("recheck-linux-x64 for Node")
    flags: list[str] = []
    if language in ("c", "cpp"):
        for start, package, given in HEADERS:
            if re.search(rf"^\s*#\s*include\s*[<\"]{re.escape(start)}", program, re.MULTILINE):
                flags += given
                if not _has_header(start):
                    missing.append(package)
    elif language == "javascript":
        folder = node_modules()
        used = set(re.findall(r"(?:require\(\s*|from\s+)['\"]([\w./@-]+)['\"]", program))
        missing += [
            f"{name} for Node" for name in sorted(used & set(NODE)) if not (folder / name).is_dir()
        ]
    elif language == "go":
        used = set(re.findall(r'"([\w.-]+(?:/[\w.-]+)+)"', program))
        listed = go_packages()[1]
        missing += [f"{name} for Go" for name in sorted(used & {*GO_PACKAGES, _GO_V5} - listed)]
    words = f"not installed: {', '.join(missing)}; mend: {SCRIPT}" if missing else ""
    return Needs(words, tuple(flags))


def _python(*texts: str) -> list[str]:
    names: set[str] = {"pytest"}
    for text in texts:
        names.update(re.findall(r"^\s*(?:import|from)\s+(\w+)", text, re.MULTILINE))
    return [PYTHON[name] for name in sorted(names & set(PYTHON)) if not has_module(name)]


@functools.cache
def has_module(name: str) -> bool:
    """Whether treeplay's own environment has the Python module."""
    return importlib.util.find_spec(name) is not None


@functools.cache
def _has_header(start: str) -> bool:
    roots = ("/usr/include", "/usr/include/libxml2", "/usr/local/include")
    # Debian keeps some of them in a folder named by the machine.
    folders = [*roots, *(str(path) for path in Path("/usr/include").glob("*-linux-*"))]
    return any(Path(folder, start).exists() for folder in folders)


def absent(language: str) -> list[str]:
    """The packages known here that are not installed, for published tests of one language."""
    names = [f"{PYTHON[name]} (PyPI)" for name in sorted(PYTHON) if not has_module(name)]
    if language in ("c", "cpp"):
        names += [package for start, package, _flags in HEADERS if not _has_header(start)]
    elif language == "javascript":
        folder = node_modules()
        names += [f"{name} (npm)" for name in NODE if not (folder / name).is_dir()]
    elif language == "go":
        roots = _go_roots()
        known = [name for name in GO_PACKAGES if not _in_gopath(roots, name)]
        if not any(_in_gopath(roots, name) for name in (_GO_V4, _GO_V5)):
            known.append(_GO_V4)
        names += [f"{name} (Go)" for name in known]
    if language != "c" and language != "go" and not (node_modules().parent / HELPER).is_file():
        names.append("recheck-linux-x64 (npm)")
    return names


def site_folders() -> list[str]:
    """Where this Python's packages lie."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(os.path.realpath(paths[key]) for key in ("purelib", "platlib")))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "treeplay")


def node_modules() -> Path:
    """The folder of npm packages: ``TREEPLAY_NODE_MODULES``, or treeplay's own."""
    given = os.environ.get("TREEPLAY_NODE_MODULES")
    return Path(given) if given else cache_folder() / "cweval" / "node_modules"


@functools.cache
def go_packages() -> tuple[str, frozenset[str]]:
    """(the file that lists the compiled packages, "" for none; the names of those that can be
    imported). The standard library and what Debian's golang-*-dev packages hold, compiled once by
    the trusted ``go`` tool outside the sandbox."""
    go = shutil.which("go")
    if go is None:
        return "", frozenset()
    roots = _go_roots()
    here = [name for name in (*GO_PACKAGES, _GO_V5, _GO_V4) if _in_gopath(roots, name)]
    env = {
        **os.environ,
        "GOTOOLCHAIN": "local",
        "GO111MODULE": "off",
        "CGO_ENABLED": "1",
        "GOFLAGS": "",
        "GOPATH": ":".join(str(root) for root in roots),
    }
    asked = subprocess.run(
        [go, "env", "GOVERSION", "GOROOT"], capture_output=True, text=True, env=env, check=False
    )
    stamps = [f"{name} {max(_stamps(roots, name))}" for name in here]
    mark = zlib.crc32("\n".join([asked.stdout, *stamps]).encode())
    base = cache_folder() / f"go-packages-{mark:08x}"
    listing = base / "importcfg"
    if not listing.exists() or not _all_exist(listing):
        form = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
        env["GOCACHE"] = str(base / "build")
        try:
            base.mkdir(parents=True, exist_ok=True)
            argv = [go, "list", "-export", "-deps", "-f", form, "std", *here]
            made = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
            if "packagefile fmt=" not in made.stdout:
                return "", frozenset()
            text = made.stdout
            # The linker knows no other names for packages.
            Path(f"{listing}.link").write_text(text, "utf-8")
            if _GO_V5 not in here and _GO_V4 in here:
                # Debian 12 has release 4 only; what programs use of 5 is the same there.
                text += f"importmap {_GO_V5}={_GO_V4}\n"
            partial = base / f"importcfg.{os.getpid()}.{secrets.token_hex(4)}"
            partial.write_text(text, "utf-8")
            partial.replace(listing)
        except OSError:
            return "", frozenset()
    named = re.findall(r"^(?:packagefile|importmap) ([^=\n]+)=", listing.read_text("utf-8"), re.M)
    return str(listing), frozenset(named)


def _go_roots() -> list[Path]:
    own = (os.environ.get("GOPATH") or str(Path("~/go").expanduser())).split(":")
    return [Path(root) for root in ("/usr/share/gocode", *own) if root]


def _in_gopath(roots: list[Path], name: str) -> bool:
    return any((root / "src" / name).is_dir() for root in roots)


def _stamps(roots: list[Path], name: str) -> list[int]:
    return [
        (root / "src" / name).stat().st_mtime_ns for root in roots if (root / "src" / name).is_dir()
    ]


def _all_exist(listing: Path) -> bool:
    lines = listing.read_text("utf-8").splitlines()
    paths = [line.partition("=")[2] for line in lines if line.startswith("packagefile ")]
    return bool(paths) and all(Path(path).exists() for path in paths)

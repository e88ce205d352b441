#!/usr/bin/env bash
# Install what CWEval's published tests and programs use, as far as Debian, PyPI and npm have it.
#
#     scripts/cweval-packages.sh [--print]
#
# Debian packages need root (or sudo without a password); npm's go into a folder of treeplay's
# (TREEPLAY_NODE_MODULES, else ~/.cache/treeplay/cweval/node_modules); Python's beside treeplay
# (PYTHON, else .venv/bin/python). --print only says what would be done. A part that cannot be had
# is told and passed over: the tasks that need it are then "unknown", see docs/cweval.md.
set -uo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
home=${XDG_CACHE_HOME:-$HOME/.cache}/treeplay/cweval
modules=${TREEPLAY_NODE_MODULES:-$home/node_modules}
home=$(dirname "$modules")

debian=(gcc g++ libc6-dev nodejs npm golang-go libssl-dev libxml2-dev libarchive-dev libsqlite3-dev
    libjwt-dev golang-golang-x-crypto-dev golang-github-mattn-go-sqlite3-dev
    golang-github-christrenkamp-goxpath-dev golang-github-golang-jwt-jwt-dev)
pypi=(pytest PyJWT lxml pycryptodome argon2-cffi wrapt_timeout_decorator PyYAML)
# Those with a number are the last that a program can require() and that the tests were written for.
npm=(argon2@0.41.1 escape-html@1 escape-string-regexp@4 js-yaml@4.1 jsdom@25 jsonwebtoken@9 lodash@4
    node-rsa@1.1.1 sqlite3 xpath@0.0.34 recheck-linux-x64@4)

if [ "${1:-}" = --print ]; then
    echo "apt-get install --no-install-recommends ${debian[*]}"
    echo "$python -m pip install ${pypi[*]}"
    echo "npm install --prefix $home ${npm[*]}"
    exit 0
fi

failed=0
told() {
    echo "notice: $1" >&2
    failed=1
}

as=no
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as=""
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as="sudo -n"
    fi
fi
for package in "${debian[@]}"; do
    # npm may come with another node than Debian's.
    case $package in
        npm | nodejs) command -v "${package/nodejs/node}" >/dev/null 2>&1 && continue ;;
        gcc | g++) command -v "$package" >/dev/null 2>&1 && continue ;;
        golang-go) command -v go >/dev/null 2>&1 && continue ;;
    esac
    dpkg -s "$package" >/dev/null 2>&1 && continue
    if [ "$as" = no ]; then
        told "$package is not installed; type: sudo apt-get install $package"
        continue
    fi
    # The prefix is empty or two words: it must be split.
    # shellcheck disable=SC2086
    $as env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        "$package" >/dev/null || told "apt-get cannot install $package"
done

"$python" -m pip install -q "${pypi[@]}" || told "pip cannot install all of: ${pypi[*]}"

if command -v npm >/dev/null 2>&1; then
    mkdir -p "$home"
    for package in "${npm[@]}"; do
        npm install --silent --no-fund --no-audit --prefix "$home" "$package" >/dev/null 2>&1 ||
            told "npm cannot install $package"
    done
    # The tests start this one by a path relative to where they run.
    if [ -x "$modules/recheck-linux-x64/recheck" ]; then
        mkdir -p "$home/third_party"
        cp "$modules/recheck-linux-x64/recheck" "$home/third_party/recheck-linux-x64"
    fi
else
    told "npm is not here, so the JavaScript tasks with packages cannot be run"
fi
exit $failed

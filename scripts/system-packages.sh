#!/usr/bin/env bash
# Make sure that the programs are here that treeplay runs generated code with.
#
# Needed: bubblewrap (the sandbox) and gcc with its C library (the C tasks).
# Optional: node (the JavaScript tasks), go (the Go tasks), g++ (C++), and the judge's analysers
# cppcheck, clang-tidy and, where npm is, eslint with eslint-plugin-security.
# Missing ones are installed with apt-get where that is possible without asking (root, or sudo
# without a password); otherwise the one line to type is printed. Exit status 1 when a needed one
# is missing afterwards.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

c_compiles() {
    have gcc && printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        gcc -x c -fsyntax-only - >/dev/null 2>&1
}

needed() { # Debian's names of the needed packages that are missing
    have bwrap || echo bubblewrap
    have prlimit && have setpriv || echo util-linux
    c_compiles || echo gcc libc6-dev
    # Debian's own python3 comes without the means to make a virtual environment.
    if [ "$(command -v "${PYTHON:-python3}" || true)" = /usr/bin/python3 ]; then
        /usr/bin/python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
    fi
}

optional() {
    have node || echo nodejs
    have go || echo golang-go
    have g++ || echo g++
    have cppcheck || echo cppcheck
    have clang-tidy || echo clang-tidy
}

eslint_is_here() {
    [ -n "${TREEPLAY_ESLINT:-}" ] || [ -d "$(npm root --global 2>/dev/null)/eslint-plugin-security" ]
}

# eslint 10 wants a newer node than Debian's.
eslint_packages() {
    node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' &&
        echo eslint@10 eslint-plugin-security@4 || echo eslint@9 eslint-plugin-security@3
}

# The word before apt-get: nothing, sudo, or "no" where it cannot be run without asking.
become() {
    if ! have apt-get; then
        echo no
    elif [ "$(id -u)" = 0 ]; then
        echo ""
    elif have sudo && sudo -n true 2>/dev/null; then
        echo "sudo -n"
    else
        echo no
    fi
}

install() { # install PACKAGE...
    echo "installing system packages: $*"
    # The prefix is empty or two words: it must be split.
    # shellcheck disable=SC2086
    $as env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" \
        >/dev/null
}

by_hand() { # the one line to type
    if have apt-get; then
        echo "sudo apt-get install -y $*"
    elif have dnf; then
        echo "sudo dnf install -y bubblewrap gcc gcc-c++ glibc-devel libasan libubsan nodejs golang" \
            "cppcheck clang-tools-extra"
    elif have pacman; then
        echo "sudo pacman -S --needed bubblewrap gcc nodejs go cppcheck clang"
    else
        echo "install these with your system's package manager: $*"
    fi
}

# Without quotes on purpose: words are packages.
# shellcheck disable=SC2046
set -- $(needed) $(optional)
if [ $# = 0 ] && { ! have npm || eslint_is_here; }; then
    exit 0
fi

as=$(become)
if [ "$as" != no ]; then
    # Lists of a fresh system are empty; an unreachable extra source is no reason to give up.
    # shellcheck disable=SC2086
    $as apt-get update -qq >/dev/null 2>&1 || true
    wanted=$(needed)
    # shellcheck disable=SC2086
    [ -z "$wanted" ] || install $wanted || true
    for package in $(optional); do
        install "$package" || true
    done
fi
if have npm && have node && ! eslint_is_here; then
    # A folder that only root may write to is left alone: eslint is optional.
    # shellcheck disable=SC2046
    npm install --silent --global --no-fund --no-audit $(eslint_packages) >/dev/null 2>&1 || true
fi

wanted=$(needed)
if [ -n "$wanted" ]; then
    {
        echo "error: treeplay needs system packages that are not here; type this, then try again:"
        # shellcheck disable=SC2046,SC2086
        echo "    $(by_hand $wanted $(optional))"
    } >&2
    exit 1
fi
for package in $(optional); do
    case $package in
        nodejs) language=javascript ;;
        golang-go) language=go ;;
        g++) language=c++ ;;
        *)
            echo "notice: $package is not installed, so the judge does without it" \
                "(mend: $(by_hand "$package"))"
            continue
            ;;
    esac
    echo "notice: $package is not installed, so $language programs cannot be run: their tests are" \
        "skipped, and answers to $language tasks count as unknown (mend: $(by_hand "$package"))"
done
if have node; then
    major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    [ "${major:-0}" -ge 18 ] ||
        echo "notice: node $(node --version) is older than 18; some JavaScript tasks may fail"
fi

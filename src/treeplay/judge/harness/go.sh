# Builds and runs one Go test group: sh go.sh <tools folder> <import list>. Reads the nonce; the
# program reads it again.
read -r nonce
exec 3>&1 1>&2
say() { printf '%s %s %s\n' "$nonce" "$1" "$(head -c 1500 "$2" | tr '\n' '\037')" >&3; exit 0; }
cd .treeplay
if ! [ -r "$2" ] || ! [ -x "$1/compile" ]; then
    echo "the Go compiler or the list of its packages ($2) is not there" >log
    say NOTOOL log
fi
if ! "$1/compile" -p main -complete -importcfg "$2" -o all.a harness.go ../solution.go test.go \
    </dev/null >log 2>&1; then
    printf 'package main\n\nfunc main() {}\n' >alone.go
    "$1/compile" -p main -complete -importcfg "$2" -o alone.a ../solution.go alone.go \
        </dev/null >alone.log 2>&1
    case $? in 0) say NOBUILD log ;; 1 | 2) ;; *) say NOTOOL alone.log ;; esac
    # Only a message about a line of the program is about the program.
    if grep -qE '^(\.\./)?solution\.go:[0-9]+' alone.log; then say INVALID alone.log; fi
    say NOTOOL alone.log
fi
"$1/link" -s -w -importcfg "$2" -o test all.a </dev/null >log 2>&1 || say NOTOOL log
cd ..
exec .treeplay/test

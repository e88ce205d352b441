# Builds and runs one Go test group: sh go.sh <tools folder> <import list>. Reads the nonce; the
# program reads it again.
read -r nonce
exec 3>&1 1>&2
say() { printf '%s %s %s\n' "$nonce" "$1" "$(head -c 1500 "$2" | tr '\n' '\037')" >&3; exit 0; }
cd .treeplay
if ! "$1/compile" -p main -complete -importcfg "$2" -o all.a harness.go ../solution.go test.go \
    </dev/null >log 2>&1; then
    printf 'package main\n\nfunc main() {}\n' >alone.go
    "$1/compile" -p main -complete -importcfg "$2" -o alone.a ../solution.go alone.go \
        </dev/null >alone.log 2>&1
    case $? in 0) say NOBUILD log ;; 1 | 2) say INVALID alone.log ;; *) say NOTOOL alone.log ;; esac
fi
"$1/link" -s -w -importcfg "$2" -o test all.a </dev/null >log 2>&1 || say NOTOOL log
cd ..
exec .treeplay/test

# Builds and runs one C test group: sh c.sh <test file>. Reads the nonce; the program reads it again.
read -r nonce
exec 3>&1 1>&2
say() { printf '%s %s %s\n' "$nonce" "$1" "$(head -c 1500 "$2" | tr '\n' '\037')" >&3; exit 0; }
# Exit status 1 also stands for a compiler that was killed or found no room: no fault of the program.
broken() {
    grep -qE '^[^ :]*(gcc|cc1|as|ld|collect2)[^ :]*: .*(terminated program|cannot execute|memory|No space left|spawn|fork)' .treeplay/log
}
common="-std=gnu17 -D_GNU_SOURCE -fno-diagnostics-color -fdiagnostics-format=text"
# What newer compilers refuse is refused by all, so that a verdict does not hang on the version.
strict="-Werror=implicit-function-declaration -Werror=implicit-int -Werror=int-conversion"
strict="$strict -Werror=incompatible-pointer-types"
gcc $common $strict -O0 -c -o .treeplay/alone.o solution.c </dev/null >/dev/null 2>.treeplay/log
status=$?
if [ $status -eq 1 ] && ! broken; then say INVALID .treeplay/log; fi
if [ $status -ne 0 ]; then say NOTOOL .treeplay/log; fi
gcc $common -I. -I.treeplay -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
    -fno-omit-frame-pointer -U_FORTIFY_SOURCE -o .treeplay/test .treeplay/all.c -lm -lpthread \
    </dev/null >/dev/null 2>.treeplay/log
status=$?
if [ $status -eq 1 ] && ! broken; then say NOBUILD .treeplay/log; fi
if [ $status -ne 0 ]; then say NOTOOL .treeplay/log; fi
exec .treeplay/test

#!/bin/sh
# Ask PyPI's vulnerability service about every locked pin. Status 0: none is known; 1: some are, and are listed;
# 2: the service did not know or could not be asked about all of them, which says nothing about the pins.
#
#     tools/audit.sh .venv-audit/bin/pip-audit
set -u
said=$(mktemp)
trap 'rm -f "$said"' EXIT
worst=0
for file in requirements/lock.txt requirements/cuda.txt; do
    "$1" --strict --disable-pip --require-hashes --timeout 20 --progress-spinner off -r "$file" >"$said" 2>&1
    status=$?
    cat "$said"
    # pip-audit ends with 1 in both cases; only with findings it prints its table.
    if [ "$status" -ne 0 ] && ! grep -q "^Name .*Version" "$said"; then
        echo "error: $file was NOT audited: PyPI's vulnerability service did not answer for all of it, see above." >&2
        echo "Run \`make audit\` again where https://pypi.org/pypi/NAME/VERSION/json can be reached." >&2
        exit 2
    fi
    [ "$status" -eq 0 ] || worst=1
done
exit "$worst"

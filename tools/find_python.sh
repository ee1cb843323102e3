#!/bin/sh
# Print the Python to set up with: the one named, else the first of 3.11, 3.12 and 3.13 that runs and can make
# virtual environments. A name on the PATH says nothing by itself (a version manager's shim may not run), so each is tried.
#
#     tools/find_python.sh [PYTHON]
set -u

usable='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
if [ "$#" -gt 0 ] && [ -n "$1" ]; then candidates="$1"; else candidates="python3.11 python3.12 python3.13 python3 python"; fi
seen=""
for candidate in $candidates; do
    if "$candidate" -c "$usable" >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
    if version=$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null); then
        case "$version" in
            3.11.*|3.12.*|3.13.*) seen="$seen  $candidate is $version, but its venv module is missing or incomplete
" ;;
            *) seen="$seen  $candidate is $version
" ;;
        esac
    elif command -v "$candidate" >/dev/null 2>&1; then
        seen="$seen  $candidate ($(command -v "$candidate")) does not run
"
    fi
done
{
    echo "error: no Python 3.11, 3.12 or 3.13 with the venv module among: $candidates"
    printf '%s' "$seen"
    echo "Install one, for example"
    echo "  Debian 12:     apt install python3.11 python3.11-venv"
    echo "  Debian 13:     apt install python3.13 python3.13-venv"
    echo "  Ubuntu 24.04:  apt install python3.12 python3.12-venv"
    echo "or name one: make PYTHON=/path/to/python3.12 ..."
} >&2
exit 1

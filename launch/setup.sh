#!/usr/bin/env bash
# Makes the environment .venv with asyncfeded and the named extras; it is quick if nothing has changed.
# Usage: bash launch/setup.sh EXTRAS          (for example mpich,digits,plots)
# PYTHON names an interpreter to use instead of python3, of version 3.10 or later.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$(printf '%s,%s' "$1" "$(cat .venv/asyncfeded.extras 2>/dev/null)" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd,)
python=${PYTHON:-python3}

command -v "$python" >/dev/null || { echo "setup: no $python found; install Python 3.10 or later, or set PYTHON" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is $("$python" --version 2>&1), expected 3.10 or later; set PYTHON to a later one" >&2
    exit 1
}

# Python files are used in place. A change of what is built or declared makes a new install necessary, and so does a module
# that comes, goes or moves: the install has a list of them.
modules=$(find src/asyncfeded -name '*.py' | sort)
stamp=$(echo "$extras $modules" | cat - pyproject.toml CMakeLists.txt src/kernel/* launch/constraints.txt | cksum)
if [ "$(cat .venv/asyncfeded.stamp 2>/dev/null)" = "$stamp" ]; then exit 0; fi

if ! [ -x .venv/bin/pip ]; then
    "$python" -m venv .venv || {
        echo "setup: $python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
fi
echo "setup: installing into .venv (a few minutes the first time, mostly for torch)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint launch/constraints.txt --editable ".[$extras]" >&2
echo "$extras" > .venv/asyncfeded.extras
echo "$stamp" > .venv/asyncfeded.stamp

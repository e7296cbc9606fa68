#!/usr/bin/env bash
# For SECONDS, kills or stops the whole training job at random instants and goes on with it; compares its result with that of
# a run that nothing disturbs. Usage: bash launch/punish.sh SECONDS [--seed N] [section.key=value ...]
# The last line of standard output is JSON; the exit status is 0 if all results are equal to the bit.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh mpich
exec .venv/bin/python launch/punish.py "$@"

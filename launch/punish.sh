#!/usr/bin/env bash
# Trains while killing the whole job at random instants and resuming it, for SECONDS, and compares the end with that of a run
# that nothing disturbs. Usage: bash launch/punish.sh SECONDS [--seed N] [section.key=value ...]
# The last line of standard output is JSON; the status is 0 if all ends are equal to the bit.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh mpich
exec .venv/bin/python launch/punish.py "$@"

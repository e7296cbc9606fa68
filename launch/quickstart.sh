#!/usr/bin/env bash
# From a fresh clone to a trained model: 1 server and 4 clients of different speeds learn handwritten digits over MPI.
# Usage: bash launch/quickstart.sh [section.key=value ...]
# The last line of standard output is the result as JSON; the line before it is the path of the picture.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh mpich,digits,plots

result=$(mktemp)
trap 'rm -f "$result"' EXIT
.venv/bin/asyncfeded train launch/digits.toml --ranks 5 run_dir="runs/quickstart-$(date +%Y-%m-%d-%H%M%S)" "$@" |
    tee "$result" | sed '$d'
run_dir=$(tail -n 1 "$result" | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["run_dir"])')
.venv/bin/asyncfeded plot "$run_dir" || echo "quickstart: no picture was drawn" >&2
tail -n 1 "$result"

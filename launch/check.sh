#!/usr/bin/env bash
# Checks style and types. Usage: bash launch/check.sh (after launch/test.sh has made .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/mypy

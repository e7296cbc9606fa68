#!/usr/bin/env bash
# Builds the documentation into build/docs; a warning is an error. Open build/docs/index.html in a browser.
# Usage: bash launch/docs.sh [arguments of mkdocs build]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh mpich,docs
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict "$@"
echo "build/docs/index.html"

#!/usr/bin/env bash
# Runs the DeepSpeed tests of Accelerate, Transformers and Lightning, from checkouts that are not changed, on CPUs: with DeepScale and with
# real DeepSpeed 0.19.8. Prints how many passed, failed and were skipped, and by name every test that only DeepSpeed passes; exit status 0
# only when there is none. docs/downstream.md has the results.
#   tests/downstream/run.sh [--only NAME] [--ours-only] [--quick] [FOLDER]    environments, logs and results go into FOLDER (build/downstream)
#   DEEPSCALE_DOWNSTREAM=/path           a folder with checkouts accelerate, transformers, pytorch-lightning; otherwise git clones them
#   DEEPSCALE_DOWNSTREAM_PYTHON=/path    a Python with the packages of requirements.txt beside this file; otherwise one is made in FOLDER
#   DEEPSCALE_REFERENCE_PATH=/path       where pip install --target put DeepSpeed 0.19.8; otherwise it is installed into FOLDER
#   DEEPSCALE_PATH=/path                 where DeepScale's packages are (build/release/python)
#   DEEPSCALE_PYTHON=/path               runs this program (.venv's Python, or python3)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${DEEPSCALE_PYTHON:-$ROOT/.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)" || { echo "error: no Python at $python and no python3: set DEEPSCALE_PYTHON" >&2; exit 2; }
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the checkouts
exec "$python" "$ROOT/tests/downstream/run_suites.py" "$@"

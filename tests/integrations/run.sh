#!/usr/bin/env bash
# Runs the integration tests (Transformers, Accelerate, PEFT, TRL, Lightning, and loops of Ray Train and Composer) on the build in
# build/release, or on what is installed where there is none.
#   tests/integrations/run.sh [--whole] [arguments of pytest]      --whole: every combination, not only the small set
#   DEEPSCALE_PYTHON=/path            Python with torch and the packages to test (default: .venv's); what is missing is skipped
#   DEEPSCALE_REFERENCE_PATH=/path    folder with DeepSpeed (pip install --no-deps --target), to compare losses with
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
BUILD="$ROOT/build/release"
python="${DEEPSCALE_PYTHON:-$ROOT/.venv/bin/python}"
[ -x "$python" ] || { echo "error: no Python at $python: run scripts/test.sh once, or set DEEPSCALE_PYTHON" >&2; exit 2; }
[ -d "$BUILD/python" ] && export PYTHONPATH="$BUILD/python${PYTHONPATH:+:$PYTHONPATH}"
[ -d "$BUILD/bin" ] && PATH="$BUILD/bin:$PATH"
export PATH="$(dirname "$python"):$PATH" DEEPSCALE_PYTHON="$python"
exec "$python" -m pytest -q -rs "$ROOT/tests/integrations" "$@"

#!/usr/bin/env bash
# Saves checkpoints at every (stage, number of ranks, tier), resumes each of them at every other, and compares the next ten losses
# with those of the run that went on: stages 0 to 3, 1 to 4 ranks, states in memory and in files.
#   tests/reshard.sh [--quick] [--break] [--format native|deepspeed|universal] [--recipes bf16,fp16,...]    --help: all of them
# Needs the build in build/release.
set -uo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
BUILD="$ROOT/build/release"
python="${DEEPSCALE_PYTHON:-$ROOT/.venv/bin/python}"
export PYTHONPATH="$BUILD/python:$ROOT/tests/python" PATH="$BUILD/bin:$(dirname "$python"):$PATH" DEEPSCALE_PYTHON="$python"
exec "$python" "$ROOT/tests/python/reshard.py" "$@"

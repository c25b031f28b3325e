#!/usr/bin/env bash
# Runs the programs that users know, by their own command lines, on CPUs and without a network: DeepSpeedExamples' CIFAR-10,
# HelloDeepSpeed, DeepSpeed-Chat step 1 and ZeRO-Inference from a checkout that is not changed, and examples/gpt_like.
#   tests/examples/run.sh [--only TEXT] [--list] [FOLDER]    inputs, logs and outputs go into FOLDER (default: build/examples)
#   DEEPSCALE_EXAMPLES=/path    a checkout of https://github.com/deepspeedai/DeepSpeedExamples; without it its programs are skipped
#   DEEPSCALE_PYTHON=/path      Python with torch and the packages of requirements.txt beside this file (default: .venv's)
# Uses the build in build/release, or what is installed where there is none. Exit status 0 only when nothing failed.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
BUILD="$ROOT/build/release"
python="${DEEPSCALE_PYTHON:-$ROOT/.venv/bin/python}"
[ -x "$python" ] || { echo "error: no Python at $python: run scripts/test.sh once, or set DEEPSCALE_PYTHON" >&2; exit 2; }
[ -d "$BUILD/python" ] && export PYTHONPATH="$BUILD/python${PYTHONPATH:+:$PYTHONPATH}"
[ -d "$BUILD/bin" ] && PATH="$BUILD/bin:$PATH"
export PATH="$(dirname "$python"):$PATH" DEEPSCALE_PYTHON="$python" DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the checkout
exec "$python" "$ROOT/tests/examples/run_programs.py" "$@"

#!/usr/bin/env bash
# From a bare Debian machine to a trained model: system packages, .venv, wheel, then a GPT trained on two ranks.
# Needs root only when a system package is missing. Can be run again at once: what is done is not done again.
#   scripts/quickstart.sh [arguments of examples/gpt/train.py, for instance --max_minutes 1]
# Settings: see scripts/common.sh.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit

phase "system packages" system_packages
phase "Python environment" python_environment
phase "wheel" wheel

command=("$VENV/bin/deepspeed" --num_gpus 2 examples/gpt/train.py --deepspeed
  --deepspeed_config examples/gpt/ds_config_zero2.json --max_minutes 3 "$@")
say "   ${command[*]}"
[ -n "$DRY_RUN" ] && exit 0
phase "training" "${command[@]}"
say "   results: examples/gpt/out (sample.txt, loss.png); next: docs/config.md, examples/gpt/README.md"

#!/usr/bin/env bash
# Installs a build into a temporary prefix, builds examples/cpp_project against it as a separate project
# (find_package(DeepScale)), and trains with it on two ranks through the installed launcher.
#   tests/cpp_project.sh BUILD_FOLDER PYTHON
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 BUILD_FOLDER PYTHON" >&2; exit 2; }
build=$(realpath "$1")
python=$2
root=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log" || { cat "$work/install.log" >&2; exit 1; }
cmake -S "$root/examples/cpp_project" -B "$work/project" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$work/prefix" -DDEEPSCALE_PYTHON="$python"
cmake --build "$work/project"
"$work/prefix/bin/deepspeed" --num_gpus 2 --no_python "$work/project/train_mlp" \
  "$root/examples/cpp_project/ds_config.json" "$work/checkpoints"
test -s "$work/checkpoints/latest"
ls "$work/checkpoints/$(cat "$work/checkpoints/latest")"
echo "the separate project was built and trained"

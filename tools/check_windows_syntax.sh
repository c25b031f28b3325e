#!/usr/bin/env bash
# Compiles the torch-bound C++ sources for Windows as far as that goes without its SDK and torch's Windows build: clang with
# a Windows target and mingw-w64's headers, checking only (no code is made). Finds POSIX functions, missing headers and
# types of other sizes; what MSVC alone refuses it cannot find.
#   tools/check_windows_syntax.sh TORCH_FOLDER [FILE...]      default files: all of src/ that need torch, without bindings
# A file passes when clang has no error in a file of this project; what it says about torch's own headers is counted.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: $0 TORCH_FOLDER [FILE...]" >&2; exit 2; }
torch=$1
shift
cd "$(dirname "$0")/.." || exit 2
command -v clang++ >/dev/null || { echo "there is no clang++; install clang" >&2; exit 2; }
[ -d "$torch/include/ATen" ] || { echo "$torch/include/ATen does not exist: TORCH_FOLDER is the package's folder" >&2; exit 2; }
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
for folder in nlohmann CLI fmt spdlog hwy; do ln -s "/usr/include/$folder" "$links/$folder"; done
if [ $# -eq 0 ]; then
  mapfile -t files < <(grep -lE '#include <(ATen|c10|torch|caffe2)/|"comm/communicator.h"|"deepscale/' -r src --include='*.cpp' |
    grep -vE '_test\.cpp$|_linux|src/bindings/|src/platform/|src/base/|src/config/|src/launcher/|src/kernels/' | sort)
  set -- "${files[@]}"
fi

# clang looks for the compiler's own headers under a version number; Debian's end in the kind of threads.
std=$(x86_64-w64-mingw32-g++-posix -print-file-name=include/c++) || exit 2

check() {
  clang++ --target=x86_64-w64-windows-gnu -fsyntax-only -std=c++20 -D_WIN32_WINNT=0x0A00 -DNOMINMAX -DFMT_HEADER_ONLY \
    -DSPDLOG_HEADER_ONLY -DSPDLOG_FMT_EXTERNAL -DUSE_C10D -DUSE_C10D_GLOO -DUSE_DISTRIBUTED -DDEEPSCALE_VERSION='"0"' \
    -isystem "$std" -isystem "$std/x86_64-w64-mingw32" -ferror-limit=0 -Wno-everything -Isrc -Iinclude -isystem "$links" -isystem src/comm/gloo_declarations \
    -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" "$1" 2>&1
}

failed=0
foreign=0
for file in "$@"; do
  status=0
  output=$(check "$file") || status=$?
  # A file whose includes end in a fatal error was not looked at.
  if [ $status -gt 1 ] || { [ $status -ne 0 ] && ! grep -qE '^[^:]*:[0-9]+:[0-9]+: error' <<<"$output"; }; then
    echo "$file: clang did not get through it:" && tail -n 3 <<<"$output"
    failed=$((failed + 1))
    continue
  fi
  [ -n "${DEEPSCALE_SHOW_ALL:-}" ] && printf "%s\n" "$output"
  ours=$(grep -E '^(src|include)/[^:]*:[0-9]+:[0-9]+: (fatal )?error' <<<"$output")
  foreign=$((foreign + $(grep -cE '^/[^:]*:[0-9]+:[0-9]+: (fatal )?error' <<<"$output")))
  if [ -n "$ours" ]; then
    echo "$ours"
    failed=$((failed + 1))
  fi
done
echo "$# files, $failed with errors of their own; $foreign errors in headers of torch"
[ $failed -eq 0 ]

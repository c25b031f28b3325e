#!/usr/bin/env bash
# Reads hostile files: builds the fuzz targets of tests/fuzz (clang 14; address and undefined-behaviour sanitizers), reads the
# corpus in the tree again, then lets libFuzzer invent inputs. Installs what is missing.
#   tests/fuzz.sh [SECONDS [TARGET...]]     seconds for each target (default 60; 0: only the corpus), all targets or those named
# Inputs that reach something new are kept in build/fuzz/corpus for the next run. A finding (crash, hang, leak, more than 1 GB
# of memory) ends a target; its input stays in build/fuzz/findings, and the exit status is not 0.
# To look at one:  build/fuzz/bin/fuzz_TARGET build/fuzz/findings/FILE
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"
cd "$ROOT" || exit
BUILD="$ROOT/build/fuzz"
FINDINGS="$BUILD/findings"
seconds="${1:-60}"
[[ "$seconds" =~ ^[0-9]+$ ]] || fail "seconds for each target must be a whole number, found '$seconds'"
[ $# -gt 0 ] && shift

has_clang() { command -v clang++-14; }
# The run-time libraries of the sanitizers and of libFuzzer are a package of their own.
has_fuzzer() {
  has_clang || return
  local program
  program="$(mktemp)"
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
    clang++-14 -fsanitize=fuzzer,address,undefined -x c++ - -o "$program"
  local status=$?
  rm -f "$program"
  return $status
}
fuzz_needs() {
  system_needs | grep -E '^(g\+\+|cmake|ninja-build|nlohmann-json3-dev|libcli11-dev|libfmt-dev|libspdlog-dev|libhwy-dev|libxxhash-dev|liburing-dev)\|'
  cat <<'NEEDS'
clang-14|has_clang|compiler with libFuzzer
libclang-rt-14-dev|has_fuzzer|run-time libraries of libFuzzer and the sanitizers
llvm-14|command -v llvm-symbolizer-14|names of functions in findings
NEEDS
}

build() {
  if [ -n "$DRY_RUN" ]; then
    say "   would build in build/fuzz"
    return 0
  fi
  logged fuzz-configure.log 300 cmake --preset fuzz || return
  logged fuzz-build.log 1800 cmake --build --preset fuzz -j "$(build_jobs)"
}

targets() { sed -n 's/^deepscale_fuzzer(\([a-z_]*\) .*/\1/p' tests/fuzz/CMakeLists.txt; }

# run_target NAME: the corpus of the tree, one input after the other, then new inputs.
run_target() {
  local name="$1" log="$LOGS/fuzz-$1.log" status=0
  local program="$BUILD/bin/fuzz_$name" own="$BUILD/corpus/$name" given="tests/fuzz/corpus/$name" dictionary="tests/fuzz/dictionaries/$name.dict"
  local options=(-rss_limit_mb=1024 -malloc_limit_mb=768 -timeout=10 -max_len=8192 -print_final_stats=1 "-artifact_prefix=$FINDINGS/$name-")
  [ -f "$dictionary" ] && options+=("-dict=$dictionary")
  mkdir -p "$own"
  timeout --kill-after=10 300 "$program" "${options[@]}" "$given"/* >"$log" 2>&1 || status=$?
  if [ $status -eq 0 ] && [ "$seconds" -gt 0 ]; then
    timeout --kill-after=10 $((seconds + 120)) "$program" "${options[@]}" "-max_total_time=$seconds" "$own" "$given" >>"$log" 2>&1 || status=$?
  fi
  # libFuzzer's status after SIGINT or SIGTERM, and those of timeout: nothing was found, and the time was not used either.
  if [ $status -eq 72 ] || [ $status -eq 124 ] || [ $status -eq 137 ]; then
    say "   $name: STOPPED before its time ($status), which is no result; whole output: $log"
    return 1
  fi
  if [ $status -ne 0 ]; then
    say "   $name: FINDING ($status)"
    grep -v '^#' "$log" | tail -n 40 >&2
    say "   whole output: $log; its input is the newest $FINDINGS/$name-*"
    return 1
  fi
  say "   $name: $(ls "$given" | wc -l) given inputs$(sed -n 's/^stat::number_of_executed_units: */, /p' "$log" | tail -n 1) tried, nothing found"
}

run_targets() {
  local name failed=0 running=0
  for name in "$@"; do
    if [ $running -ge "$(build_jobs)" ]; then
      wait -n || failed=1
      running=$((running - 1))
    fi
    run_target "$name" &
    running=$((running + 1))
  done
  while [ $running -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
  done
  return $failed
}

phase "system packages" system_packages fuzz_needs
phase "build of the fuzz targets" build
[ -n "$DRY_RUN" ] && exit 0
for name in "$@"; do
  targets | grep -qx "$name" || fail "there is no fuzz target '$name'; there are: $(targets | tr '\n' ' ')"
done
mkdir -p "$LOGS" "$FINDINGS"
FUZZ_FOLDER="$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$BUILD")")"
export FUZZ_FOLDER UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=symbolize=1
ASAN_SYMBOLIZER_PATH="$(command -v llvm-symbolizer-14 || true)"
export ASAN_SYMBOLIZER_PATH
trap 'rm -rf "$FUZZ_FOLDER"' EXIT
[ $# -gt 0 ] || mapfile -t names < <(targets)
[ $# -gt 0 ] && names=("$@")
phase "hostile files, $seconds s for each of ${#names[@]} readers" run_targets "${names[@]}"

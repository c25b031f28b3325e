#!/usr/bin/env bash
# Builds everything and runs the C++ tests (ctest) and the Python tests (pytest) on the build, without installing it.
# Prepares the machine as quickstart.sh does. Exit status 0 only when both pass; can be run again at once.
#   scripts/test.sh [arguments of pytest]        DEEPSCALE_UNITY=1: half the time for a build from nothing (common.sh)
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit
BUILD="$ROOT/build/release"

build() {
  if [ -n "$DRY_RUN" ]; then
    say "   would build in build/release"
    return 0
  fi
  # shellcheck disable=SC2046  # several options
  logged configure.log 300 cmake --preset release -DDEEPSCALE_PYTHON="$VENV/bin/python" $(cmake_options) || return
  say "   compiling with $(build_jobs) jobs; progress: $LOGS/build.log"
  logged build.log 3600 cmake --build --preset release -j "$(build_jobs)"
}

cpp_tests() { limited 1500 ctest --preset release -j 2; }

# Two files of tests at a time: most wait for disks and for each other's ranks more than they compute.
python_tests() {
  local status=0
  PYTHONPATH="$BUILD/python" PATH="$BUILD/bin:$VENV/bin:$PATH" DEEPSCALE_PYTHON="$VENV/bin/python" \
    limited 2400 "$VENV/bin/python" -m pytest -q -rs -n 2 --dist loadfile --durations=20 tests/python tests/integrations "$@" || status=$?
  if [ $status -eq 5 ]; then
    say "   pytest found no tests"
    status=0
  fi
  return $status
}

phase "system packages" system_packages
phase "Python environment" python_environment
phase "build" build
[ -n "$DRY_RUN" ] && exit 0
failed=0
phase "C++ tests" cpp_tests || failed=1
phase "Python tests" python_tests "$@" || failed=1
exit $failed

# Preparation shared by quickstart.sh, test.sh and .ci/run; sourced, not run. Every function does only what is left to do.
#   PYTHON=/path/to/python   interpreter for a new .venv (default: python3 in PATH)
#   DEEPSCALE_DRY_RUN=1      say what would be installed and built, and change nothing
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
DRY_RUN="${DEEPSCALE_DRY_RUN:-}"
LOGS="$ROOT/build/logs"
# Paths below it relative for ccache: what the tests compiled in build/release serves the wheel in a folder beside it.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$ROOT}"

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

# phase NAME COMMAND...: runs it and says how long it took.
phase() {
  local name="$1" begin=$SECONDS status=0
  shift
  say "== $name"
  "$@" || status=$?
  say "== $name: $((SECONDS - begin)) s$([ $status -eq 0 ] || echo ", FAILED ($status)")"
  return $status
}

# limited SECONDS COMMAND...: ends it, and all that it started, after that time and when this script is interrupted. A command in the
# background ignores Ctrl-C, and what it starts would, too: env takes that back.
limited() {
  local limit="$1" status=0
  shift
  timeout --kill-after=30 "$limit" env --default-signal=INT,QUIT "$@" </dev/null &
  local child=$!
  # All jobs: also the heartbeat of logged(), which would keep who reads our output waiting.
  trap 'kill -TERM $(jobs -p) 2>/dev/null; wait || true; say interrupted; exit 130' INT
  trap 'kill -TERM $(jobs -p) 2>/dev/null; wait || true; say "stopped; run it again, and it goes on"; exit 143' TERM
  wait "$child" || status=$?
  trap - INT TERM
  return $status
}

# logged FILE SECONDS COMMAND...: output into build/logs/FILE, its end shown when the command fails or takes too long.
logged() {
  local log="$LOGS/$1" limit="$2" status=0
  shift 2
  mkdir -p "$LOGS"
  # What takes long says how far it is. The nap ends with it: a pipe that it holds open would keep others waiting.
  (
    nap=""
    trap '[ -n "$nap" ] && kill "$nap" 2>/dev/null; exit 0' TERM
    while kill -0 $$ 2>/dev/null; do
      sleep 30 &
      nap=$!
      wait "$nap"
      say "   ${log##*/}: $(tail -n 1 "$log" | tr -d '\r' | cut -c1-110)"
    done
  ) >&2 &
  local heartbeat=$!
  limited "$limit" "$@" >"$log" 2>&1 || status=$?
  kill "$heartbeat" 2>/dev/null || true
  wait "$heartbeat" 2>/dev/null || true
  if [ $status -ne 0 ]; then
    tail -n 40 "$log" >&2
    [ $status -eq 124 ] && say "stopped after $limit s"
    say "failed ($status): $*; whole output: $log"
  fi
  return $status
}

version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

has_header() { echo "#include <$1>" | g++ -E -x c++ - >/dev/null 2>&1; }

has_compiler() { command -v g++ >/dev/null && version_at_least "$(g++ -dumpfullversion)" 12; }

has_cmake() { command -v cmake >/dev/null && version_at_least "$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')" 3.25; }

base_python() {
  if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; else command -v python3 || echo python3; fi
}

has_python() { "$(base_python)" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; }

has_venv() { [ -x "$VENV/bin/python" ] || "$(base_python)" -c 'import ensurepip, venv' 2>/dev/null; }

has_python_headers() {
  local python="$VENV/bin/python"
  [ -x "$python" ] || python="$(base_python)"
  "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null
}

# Debian package, test, reason. A missing compiler makes every header test fail, which is right: all are needed.
system_needs() {
  cat <<'NEEDS'
g++|has_compiler|compiler for C++20 (g++ 12 or newer)
cmake|has_cmake|build system (3.25 or newer)
ninja-build|command -v ninja|build system
python3|has_python|Python 3.10 or newer
python3-venv|has_venv|makes .venv
python3-dev|has_python_headers|headers for the Python extension
nlohmann-json3-dev|has_header nlohmann/json.hpp|configuration files
libcli11-dev|has_header CLI/CLI.hpp|command lines of deepspeed and ds_report
libfmt-dev|has_header fmt/core.h|messages
libspdlog-dev|has_header spdlog/spdlog.h|log
liburing-dev|has_header liburing.h|asynchronous files
libhwy-dev|has_header hwy/highway.h|SIMD kernels
libxxhash-dev|has_header xxhash.h|checksums of checkpoints
libgtest-dev|has_header gtest/gtest.h|C++ tests
libgmock-dev|has_header gmock/gmock.h|C++ tests
NEEDS
}

install_with_apt() {
  command -v apt-get >/dev/null || fail "this is no Debian system: install the packages above with your package manager"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "not root: run 'apt-get install -y $*' as root, then this script again"
    as_root=(sudo -n)
  fi
  logged apt-update.log 600 "${as_root[@]}" apt-get -o Acquire::Retries=3 update || return
  logged apt-install.log 1200 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o Acquire::Retries=3 install -y --no-install-recommends "$@"
}

# system_packages [NEEDS]: installs what the function NEEDS lists (default: system_needs) and is not there.
system_packages() {
  local package test reason missing=()
  while IFS='|' read -r package test reason; do
    if ! $test >/dev/null 2>&1; then
      say "   missing: $package ($reason)"
      missing+=("$package")
    fi
  done < <("${1:-system_needs}")
  if [ ${#missing[@]} -eq 0 ]; then
    say "   nothing is missing"
    return 0
  fi
  # Optional, and cheap when something is installed anyway: the tests and the wheel then share compiled files.
  command -v ccache >/dev/null || missing+=(ccache)
  [ -n "$DRY_RUN" ] && { say "   would install: ${missing[*]}"; return 0; }
  say "   installing: ${missing[*]}"
  install_with_apt "${missing[@]}"
}

checksum() { sha256sum | cut -d' ' -f1; }

# .venv with the packages of requirements-dev.txt.
python_environment() {
  local stamp="$VENV/.deepscale-requirements" wanted
  wanted="$(checksum <"$ROOT/requirements-dev.txt")"
  if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    say "   .venv is up to date"
    return 0
  fi
  [ -n "$DRY_RUN" ] && { say "   would make .venv and install requirements-dev.txt"; return 0; }
  say "   installing requirements-dev.txt into .venv (torch is about 2 GB with its libraries)"
  [ -x "$VENV/bin/python" ] || "$(base_python)" -m venv "$VENV" || return
  local attempt
  for attempt in 1 2 3; do
    if logged pip.log 1800 "$VENV/bin/python" -m pip install --disable-pip-version-check --timeout 60 -r "$ROOT/requirements-dev.txt"; then
      echo "$wanted" >"$stamp"
      return 0
    fi
    say "   attempt $attempt failed"
  done
  return 1
}

# Compilations at once: one per core, and 2.5 GB of memory for each.
build_jobs() {
  local cores memory
  cores="$(nproc)"
  memory=$(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) / 2500000))
  [ "$memory" -lt 1 ] && memory=1
  echo $((cores < memory ? cores : memory))
}

# Options of CMake. DEEPSCALE_UNITY=1 compiles the sources of a library as one: a build from nothing takes half the time, but then a
# change of one source compiles its whole library.
cmake_options() { [ "${DEEPSCALE_UNITY:-0}" = 0 ] || echo "-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=0"; }

# Everything the wheel is made of, and the torch and Python that it is made for.
wheel_checksum() {
  (
    cd "$ROOT"
    find CMakeLists.txt pyproject.toml cmake include src python -type f ! -name '*.pyc' ! -name '*_test.cpp' \
      ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
    "$VENV/bin/python" -VV
    cat "$VENV"/lib/python3*/site-packages/torch/version.py
  ) | checksum
}

# The wheel, installed into .venv.
wheel() {
  if [ -n "$DRY_RUN" ]; then
    say "   would build and install the wheel"
    return 0
  fi
  local stamp="$VENV/.deepscale-wheel" wanted
  wanted="$(wheel_checksum)"
  if [ -x "$VENV/bin/deepspeed" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    say "   the installed wheel is up to date"
    return 0
  fi
  say "   compiling with $(build_jobs) jobs; progress: $LOGS/wheel.log"
  # The compiler under the name that CMake finds for the tests: ccache keeps what each name compiled apart.
  CMAKE_ARGS="${CMAKE_ARGS:-} $(cmake_options)" CXX="${CXX:-c++}" CMAKE_BUILD_PARALLEL_LEVEL="$(build_jobs)" logged wheel.log 3600 "$VENV/bin/python" -m pip install -v \
    --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall "$ROOT" || return
  echo "$wanted" >"$stamp"
}

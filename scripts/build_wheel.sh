#!/usr/bin/env bash
# Makes one wheel for several versions of torch (docs/install.md): the torch-bound part is compiled once for each of them,
# everything else once. The wheel is for the Python that builds it, and needs nothing but Python, torch and the C library.
#   scripts/build_wheel.sh [--torch 2.11,2.12,...] [--output FOLDER]
#   --torch     minor versions (default: all from 2.11 to 2.15 that the package registry has)
#   --output    folder of the wheel (default: dist)
#   PYTHON=...  the interpreter (default: .venv/bin/python, else python3)
#   DEEPSCALE_TORCH_CACHE=...  keeps headers and libraries of torch, 0.6 GB for each version (default: build/torch). A
#               machine without registry needs them there: FOLDER/2.12/torch/{version.py,include,lib} of an unpacked torch wheel.
CALLER="$PWD"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit

OLDEST=11 NEWEST=15 # minor versions of torch 2 that pyproject.toml admits
WORK="$ROOT/build/wheel"
TOOLS="$WORK/tools"
CACHE="${DEEPSCALE_TORCH_CACHE:-$ROOT/build/torch}"
minors="" output="$ROOT/dist"

usage() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit "$1"
}

# A path as the caller meant it.
from_caller() { case "$1" in /*) echo "$1" ;; *) echo "$CALLER/$1" ;; esac; }

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --torch) minors="${2:-}" && shift 2 || usage 2 ;;
      --output) output="$(from_caller "${2:?--output needs a folder}")" && shift 2 || usage 2 ;;
      -h | --help) usage 0 ;;
      *) say "unknown argument: $1" && usage 2 ;;
    esac
  done
  local minor
  for minor in ${minors//,/ }; do
    [[ "$minor" =~ ^2\.[0-9]+$ ]] && [ "${minor#2.}" -ge $OLDEST ] && [ "${minor#2.}" -le $NEWEST ] ||
      fail "--torch $minor: expected minor versions from 2.$OLDEST to 2.$NEWEST, separated by commas"
  done
}

python_of_wheel() {
  if [[ "${PYTHON:-}" == */* ]]; then from_caller "$PYTHON"; elif [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; elif [ -x "$VENV/bin/python" ]; then echo "$VENV/bin/python"; else base_python; fi
}

# The programs that make the wheel, in an environment of their own: without torch, so that no version is preferred.
tools() {
  if [ ! -x "$TOOLS/bin/python" ]; then
    "$(python_of_wheel)" -m venv "$TOOLS" || return
  fi
  if "$TOOLS/bin/python" -c 'import auditwheel, scikit_build_core, wheel' 2>/dev/null; then return 0; fi
  logged wheel-tools.log 600 "$TOOLS/bin/python" -m pip install --disable-pip-version-check \
    "scikit-build-core>=0.10,<2" wheel auditwheel && return
  fail "the package registry gave no scikit-build-core, wheel and auditwheel; a machine without registry needs them in $TOOLS" \
    "(python -m venv $TOOLS, then pip install --no-index --find-links FOLDER scikit-build-core wheel auditwheel)"
}

# Minor versions from OLDEST to NEWEST that the registry has a wheel of for this Python; without registry, those in the cache.
known_minors() {
  local listed
  listed="$("$TOOLS/bin/python" -m pip index versions torch --disable-pip-version-check 2>/dev/null |
    sed -n 's/^Available versions: //p' | tr -d ',' | tr ' ' '\n' | sed -n 's/^2\.\([0-9]*\)\..*/\1/p' | sort -nu)"
  if [ -z "$listed" ]; then
    say "   no answer from the package registry: only the versions in $CACHE"
    listed="$(find "$CACHE" -maxdepth 1 -name '2.*' 2>/dev/null | sed 's/.*2\.//' | sort -n)"
  fi
  local minor known=()
  for minor in $listed; do
    [ "$minor" -ge $OLDEST ] && [ "$minor" -le $NEWEST ] && known+=("2.$minor")
  done
  (IFS=,; echo "${known[*]:-}")
}

torch_minor_in() { sed -n "s/^__version__ = '\([0-9]*\.[0-9]*\)\..*/\1/p" "$1/version.py" 2>/dev/null; }

# unpack_torch WHEEL FOLDER: what compiling and linking need; the libraries for GPUs are not among it.
unpack_torch() {
  "$TOOLS/bin/python" - "$1" "$2" <<'PYTHON'
import re, sys, zipfile
wanted = re.compile(r"torch/(version\.py|include/.*|lib/lib(torch|torch_cpu|torch_python|c10)\.so)$")
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if wanted.match(name)])
PYTHON
}

# The folder torch/ of minor version $1: from the cache, from the environment, or else fetched into the cache.
torch_folder() {
  local minor="$1" installed download
  if [ "$(torch_minor_in "$CACHE/$minor/torch")" = "$minor" ]; then
    echo "$CACHE/$minor/torch"
    return 0
  fi
  installed="$("$(python_of_wheel)" -c 'import importlib.util as u, os; s = u.find_spec("torch"); print(os.path.dirname(s.origin) if s else "")')"
  if [ -n "$installed" ] && [ "$(torch_minor_in "$installed")" = "$minor" ]; then
    echo "$installed"
    return 0
  fi
  say "   fetching torch $minor (about 0.5 GB; 0.6 GB are kept in $CACHE)"
  mkdir -p "$CACHE"
  download="$(mktemp -d "$CACHE/download.XXXXXX")"
  if logged "torch-$minor.log" 1800 "$TOOLS/bin/python" -m pip download --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary :all: --dest "$download" "torch==$minor.*" && unpack_torch "$download"/torch-*.whl "$download/$minor"; then
    rm -rf "${CACHE:?}/$minor" && mv "$download/$minor" "$CACHE/$minor" && rm -rf "$download"
    echo "$CACHE/$minor/torch"
    return 0
  fi
  rm -rf "$download"
  fail "no torch $minor: without registry, unpack a wheel of it so that $CACHE/$minor/torch/version.py, include/ and lib/ exist"
}

# The torch-bound part for minor version $1, into $WORK/parts.
torch_part() {
  local minor="$1" build="$WORK/torch-$1" torch
  torch="$(torch_folder "$minor")" || return
  logged "wheel-$minor.log" 300 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DDEEPSCALE_WHEEL_LAYOUT=ON \
    -DDEEPSCALE_BUILD_TESTS=OFF -DDEEPSCALE_BUILD_EXAMPLES=OFF -DDEEPSCALE_PYTHON="$TOOLS/bin/python" \
    -DDEEPSCALE_TORCH_DIR="$torch" || return
  logged "wheel-$minor.log" 7200 cmake --build "$build" -j "$(build_jobs)" --target deepscale deepscale_python || return
  logged "wheel-$minor-install.log" 300 cmake --install "$build" --component torch --strip --prefix "$WORK/parts"
}

# Everything that no torch version changes, and the parts; the name gets the platform tag that the binaries need.
pack() {
  rm -rf "$WORK/packed"
  logged wheel-pack.log 3600 env CMAKE_BUILD_PARALLEL_LEVEL="$(build_jobs)" "$TOOLS/bin/python" -m pip wheel -v \
    --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir "$WORK/packed" -C build-dir="$WORK/programs" \
    -C cmake.define.DEEPSCALE_TORCH_PARTS="$WORK/parts" -C build.targets=deepscale_programs . || return
  local wheel tag
  wheel="$(ls "$WORK"/packed/*.whl)"
  tag="$("$TOOLS/bin/python" tools/check_wheel.py --tag "$wheel")" || return
  "$TOOLS/bin/python" -m wheel tags --remove --platform-tag "$tag" "$wheel" >/dev/null || return
  mkdir -p "$output"
  mv "$WORK"/packed/*.whl "$output/"
}

# auditwheel reads the same binaries with its own rules. torch's libraries are the user's, so that it names no tag of its own
# accord; what it prints is the oldest system by symbol versions.
verify() {
  "$TOOLS/bin/python" tools/check_wheel.py "$1" >&2 || return
  local found wanted
  wanted="$("$TOOLS/bin/python" tools/check_wheel.py --tag "$1")"
  found="$("$TOOLS/bin/python" -m auditwheel show "$1" 2>&1 | tr '\n' ' ' | grep -o 'constrains the platform tag to "[^"]*"' || true)"
  say "   auditwheel: ${found:-says nothing about symbol versions}"
  [[ "$found" == *"\"$wanted\""* ]] || fail "auditwheel does not come to the platform tag $wanted of tools/check_wheel.py"
}

parse_arguments "$@"
phase "system packages" system_packages
[ -n "$DRY_RUN" ] && say "   would build for $(python_of_wheel), torch ${minors:-2.$OLDEST to 2.$NEWEST}" && exit 0
phase "tools" tools
[ -n "$minors" ] || minors="$(known_minors)"
[ -n "$minors" ] || fail "no torch version to build for"
say "   $("$TOOLS/bin/python" -V), torch $minors"
rm -rf "$WORK/parts"
for minor in ${minors//,/ }; do
  phase "torch $minor" torch_part "$minor"
done
phase "wheel" pack
wheel_file="$(ls -t "$output"/deepspeed-*.whl | head -n 1)"
phase "check" verify "$wheel_file"
echo "$wheel_file"

#!/usr/bin/env bash
# The wheel on a machine without compiler: installs it into a fresh virtual environment inside a minimal Debian (debootstrap,
# python3 and python3-venv only), trains examples/gpt on two ranks, and asks ds_report, with several versions of torch.
#   tests/wheel.sh [WHEEL] [TORCH...]      default: a wheel made by scripts/build_wheel.sh, and torch 2.11.0 and 2.15.0
# Needs root, a Debian or PyPI mirror, and about 12 GB of disk for the time it runs: torch comes from the package registry
# with all its libraries, as its users get it. Downloads stay in build/wheel_test for the next run.
# Everything that is mounted is mounted in a namespace of its own, which ends with this script, however that ends.
set -euo pipefail

# ---- inside the root: one environment with one torch. Prints "name|ok or FAILED|detail" lines to the results file.
result() { printf '%s|%s|%s\n' "torch $torch: $1" "$2" "$3" >>/results; }

# check NAME COMMAND...: the last line that the command prints is the detail.
check() {
  local name="$1" status=0 output
  shift
  echo "-- $name" >&2
  output="$("$@" 2>&1)" || status=$?
  printf '%s\n' "$output" | tail -n 25 >&2
  output="$(printf '%s' "$output" | tail -n 1 | cut -c1-150)"
  if [ $status -eq 0 ]; then result "$name" ok "$output"; else result "$name" FAILED "exit $status: $output"; fi
  return 0
}

no_compiler() {
  local tool found=""
  for tool in cc gcc g++ c++ clang clang++ as ld make cmake ninja nvcc hipcc; do
    if command -v "$tool" >/dev/null; then found+=" $tool"; fi
  done
  [ -z "$found" ] || { echo "there is$found"; return 1; }
  echo "no compiler, linker, make, cmake, ninja or nvcc"
}

install_wheel() {
  python3 -m venv /env || return
  local pip=(/env/bin/python -m pip --disable-pip-version-check --quiet --no-cache-dir)
  # tokenizers and safetensors are what examples/gpt needs beside the wheel's own requirements. What was fetched stays for
  # the next run, which can do without the registry.
  "${pip[@]}" download --only-binary :all: --dest /downloads "torch==$torch" numpy tqdm tokenizers safetensors ||
    echo "no answer from the package registry; going on with earlier downloads"
  "${pip[@]}" install --no-index --find-links /downloads "torch==$torch" "$wheel" tokenizers safetensors || return
  "${pip[@]}" check >/dev/null || return
  /env/bin/python -m pip show deepspeed | sed -n 's/^Requires: /requires /p'
}

# Imports deepspeed and its extension, and says how long that takes beside torch alone (median of five).
imports() {
  /env/bin/python - <<'PYTHON'
import statistics, subprocess, sys
def seconds(code):
    timed = f"import time; begin = time.perf_counter(); {code}; print(time.perf_counter() - begin)"
    return statistics.median(float(subprocess.check_output([sys.executable, "-c", timed])) for _ in range(5))
seconds("import deepspeed._C")
alone, package, native = seconds("import torch"), seconds("import deepspeed"), seconds("import deepspeed._C")
import deepspeed, deepscale, torch
from deepspeed import _C
folder = _C.__file__.rsplit("/", 2)[1]
assert torch.__version__.startswith(folder + "."), (torch.__version__, _C.__file__)
print(f"import torch {alone:.2f} s, deepspeed {package:.2f} s, with deepspeed._C {native:.2f} s; _torch/{folder}")
assert package < alone * 1.25 + 0.2 and native < alone * 1.25 + 0.5, "importing deepspeed takes too long"
PYTHON
}

programs() {
  local program
  for program in deepspeed deepscale ds deepspeed.pt ds_report dsr ds_bench ds_io ds_nvme_tune; do
    "/env/bin/$program" --help >/dev/null || { echo "$program --help: exit $?"; return 1; }
  done
  echo "deepspeed deepscale ds deepspeed.pt ds_report dsr ds_bench ds_io ds_nvme_tune start"
}

train() {
  rm -rf /out
  PATH="/env/bin:$PATH" deepspeed --num_gpus 2 /gpt/train.py --deepspeed --deepspeed_config /gpt/ds_config_zero2.json \
    --max_minutes 5 --max_steps 60 --n_layer 2 --d_model 128 --n_head 4 --block_size 64 --vocab_size 2048 --eval_interval 30 \
    --output_dir /out || return
  /env/bin/python - <<'PYTHON'
import json
rows = [json.loads(line) for line in open("/out/metrics.jsonl")]
losses = [row["loss"] for row in rows if "loss" in row]
first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
print(f"two ranks, {len(losses)} steps, loss {first:.2f} -> {last:.2f}")
assert len(losses) == 60 and last < 0.85 * first, "the loss does not fall"
PYTHON
}

report_is_green() {
  /env/bin/ds_report || return
  /env/bin/ds_report --import --json >/report.json || return
  /env/bin/python - <<'PYTHON'
import json
report = json.load(open("/report.json"))
assert not report["warnings"], report["warnings"]
bad = [row["name"] for row in report["operators"] if row["installed"] and not row["compatible"]]
assert not bad, bad
built = sum(row["installed"] for row in report["operators"])
print(f"{built} operators installed and compatible, no warnings")
assert built >= 8
PYTHON
}

# The programs' libraries and torch's are all that the process of an imported extension maps.
libraries() {
  /env/bin/python - <<'PYTHON'
import re
import torch
before = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
import deepspeed._C
after = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
new = sorted(path.rsplit("/", 1)[1] for path in after - before)
own = [name for name in new if re.match(r"libdeepscale\.so|_C\.", name)]
foreign = [name for name in new if name not in own and "/lib-dynload/" not in next(p for p in after if p.endswith("/" + name))]
print("loads beside torch: " + " ".join(own + foreign))
assert len(own) == 2 and not foreign, foreign
PYTHON
}

inside() {
  torch="$1" wheel="$2"
  check "no compiler here" no_compiler
  check "pip install" install_wheel
  check "import" imports
  check "libraries" libraries
  check "programs" programs
  check "train examples/gpt" train
  check "ds_report" report_is_green
}

# ---- outside
root_of_repository="$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")"

# The wheel's binaries, and the names and entries that pip needs.
check_file() {
  python3 "$root_of_repository/tools/check_wheel.py" "$1" >&2 || return
  python3 - "$1" <<'PYTHON'
import base64, csv, hashlib, io, re, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    assert wheel.testzip() is None
    info = next(name.rsplit("/", 1)[0] for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = wheel.read(info + "/METADATA").decode()
    assert re.search(r"^Name: deepspeed$", metadata, re.M) and re.search(r"^Requires-Dist: torch<2\.16,>=2\.11$|^Requires-Dist: torch>=2\.11,<2\.16$", metadata, re.M), metadata
    tags = re.findall(r"^Tag: (.+)$", wheel.read(info + "/WHEEL").decode(), re.M)
    assert tags == ["-".join(sys.argv[1].removesuffix(".whl").rsplit("-", 3)[1:])], tags
    listed = {row[0]: row[1] for row in csv.reader(io.StringIO(wheel.read(info + "/RECORD").decode()))}
    names = {name for name in wheel.namelist() if not name.endswith("/")}
    assert names == set(listed), names ^ set(listed)
    for name, digest in listed.items():
        if digest:
            method, _, value = digest.partition("=")
            assert base64.urlsafe_b64encode(hashlib.new(method, wheel.read(name)).digest()).decode().rstrip("=") == value, name
    minors = sorted({match[1] for name in names if (match := re.match(r"deepspeed/_torch/([\d.]+)/", name))}, key=lambda v: int(v.split(".")[1]))
    size = sum(entry.compress_size for entry in wheel.infolist()) / 1e6
    print(f"{len(names)} files, {size:.1f} MB, RECORD and tags agree, for torch {' '.join(minors)}")
PYTHON
}

debian_for() {
  case "$1" in
    *-cp311-*) echo bookworm ;;
    *-cp313-*) echo trixie ;;
    *) echo "no Debian release has the Python of $1 (cp311 and cp313 are known)" >&2 && return 1 ;;
  esac
}

# Runs in namespaces of its own: mounts what a container would have, enters the root.
enter() {
  local root="$1" cache="$2"
  shift 2
  mount --make-rprivate /
  mount --bind "$cache" "$root/downloads"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  mkdir "$root/dev/shm"
  mount -t tmpfs -o size=2g tmpfs "$root/dev/shm"
  local device
  for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  local name kept=()
  for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    if [ -n "${!name:-}" ]; then kept+=("$name=${!name}"); fi
  done
  exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 OMP_NUM_THREADS=1 PIP_DEFAULT_TIMEOUT=180 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt "${kept[@]}" /bin/bash /wheel.sh --inside "$@"
}

make_root() {
  local root="$1" wheel="$2" release
  release="$(debian_for "$wheel")" || return
  command -v debootstrap >/dev/null || apt-get install -y --no-install-recommends debootstrap >/dev/null || return
  echo "-- debootstrap $release (about two minutes)" >&2
  debootstrap --variant=minbase --include=python3,python3-venv "$release" "$root" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; return 1; }
  mkdir "$root/downloads"
  cp -r "$root_of_repository/examples/gpt" "$root/gpt"
  cp "${BASH_SOURCE[0]}" "$root/wheel.sh"
  cp "$wheel" "$root/"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  # The registry may be behind this machine's own certificate.
  mkdir -p "$root/etc/ssl/certs"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
  if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
}

print_table() {
  echo
  awk -F'|' '{printf "%-36s %-7s %s\n", $1, $2, $3; bad += $2 != "ok"; n += 1} END {printf "%d checks, %d failed\n", n, bad}' "$1"
}

main() {
  local wheel="${1:-}" place root cache results status=0
  [ "$(id -u)" -eq 0 ] || { echo "$0 needs root: it makes a root folder and enters it" >&2; exit 2; }
  if [ -z "$wheel" ]; then wheel="$("$root_of_repository/scripts/build_wheel.sh" | tail -n 1)"; fi
  [ -f "$wheel" ] || { echo "no wheel $wheel" >&2; exit 2; }
  wheel="$(realpath "$wheel")"
  shift || true
  local torches=("$@")
  [ ${#torches[@]} -gt 0 ] || torches=(2.11.0 2.15.0)
  cache="$root_of_repository/build/wheel_test"
  mkdir -p "$cache"
  place="$(mktemp -d /var/tmp/deepscale-wheel.XXXXXX)"
  # Before the root is removed nothing may be mounted in it; the namespace saw to that.
  # shellcheck disable=SC2064 # now: the variable is gone when the script ends
  trap "rm -rf --one-file-system '$place'" EXIT
  trap 'exit 130' INT TERM HUP
  root="$place/root" results="$place/results"
  touch "$results"
  local detail
  if detail="$(check_file "$wheel")"; then echo "wheel file|ok|$detail" >>"$results"; else echo "wheel file|FAILED|see above" >>"$results"; fi
  make_root "$root" "$wheel"
  local torch
  for torch in "${torches[@]}"; do
    echo "== torch $torch" >&2
    rm -rf "$root/env" "$root/out" "$root/root/.cache"
    unshare --mount --pid --fork --kill-child -- /bin/bash "${BASH_SOURCE[0]}" --enter "$root" "$cache" "$torch" "/$(basename "$wheel")" ||
      echo "torch $torch: the root|FAILED|exit $?" >>"$results"
    if [ -f "$root/results" ]; then cat "$root/results" >>"$results"; else echo "torch $torch: the root|FAILED|no results" >>"$results"; fi
    rm -f "$root/results"
  done
  print_table "$results"
  if grep -q '|FAILED|' "$results"; then exit 1; fi
}

case "${1:-}" in
  --inside) shift && inside "$@" ;;
  --enter) shift && enter "$@" ;;
  -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
  *) main "$@" ;;
esac

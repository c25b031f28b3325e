#!/usr/bin/env bash
# Kills a program at random moments while it saves checkpoints, and looks after each kill at what is left: every folder that looks
# like a checkpoint must be whole and have its own values, and what was saved before must still be there.
#   tests/crash.sh [KILLS [SECONDS_OF_A_FULL_DISK]]    default 100 kills, and 5 seconds on a disk that is full again and again
#   tests/crash.sh KILLS python [SEED]                 kills two ranks of engine.save_checkpoint(): both layouts, saves within steps and
#                                                      beside them, stages 1 to 3 (tests/python/crash_saves.py); less than a second each
# The full disk needs root (a small tmpfs is mounted) and is left out otherwise. Needs the build in build/release; DEEPSCALE_PYTHON is the
# Python with torch (default: .venv).
set -uo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PROGRAM="$ROOT/build/release/bin/checkpoint_crash"
kills="${1:-100}"
seconds="${2:-5}"
work="$(mktemp -d)"
if [ "$seconds" = python ]; then
  trap 'rm -rf "$work"' EXIT
  export PYTHONPATH="$ROOT/build/release/python:$ROOT/tests/python" OMP_NUM_THREADS=1
  "${DEEPSCALE_PYTHON:-$ROOT/.venv/bin/python}" "$ROOT/tests/python/crash_saves.py" "$work" "$kills" ${3+"$3"}
  exit
fi
saver=
cleanup() {
  [ -n "$saver" ] && kill -9 "$saver" 2>/dev/null
  mountpoint -q "$work/disk" 2>/dev/null && umount "$work/disk"
  rm -rf "$work"
}
trap cleanup EXIT

# One look: prints the newest step; ends the test when something is wrong or a step was lost.
newest=-1
look() {
  local found
  found="$("$PROGRAM" check "$1")" || { echo "FAILED after kill $2 ($(ls -A "$1" | tr '\n' ' '))"; exit 1; }
  [ "$found" -ge "$newest" ] || { echo "FAILED after kill $2: step $newest was there before, now the newest is $found"; exit 1; }
  newest=$found
}

mkdir "$work/saves"
moved=0
for ((kill = 1; kill <= kills; ++kill)); do
  before=$newest
  "$PROGRAM" save "$work/saves" 2>>"$work/errors" &
  saver=$!
  sleep "0.$(printf '%03d' $((RANDOM % 120)))"
  kill -9 "$saver" 2>/dev/null
  wait "$saver" 2>/dev/null
  saver=
  look "$work/saves" "$kill"
  [ "$newest" -gt "$before" ] && moved=$((moved + 1))
done
if [ -s "$work/errors" ]; then
  echo "FAILED: a save that was not hindered failed: $(head -n 1 "$work/errors")"
  exit 1
fi
echo "$kills kills: no wrong load, no checkpoint lost; newest step $newest, $moved kills came after a finished save"
[ "$moved" -gt 0 ] || [ "$kills" -eq 0 ] || { echo "FAILED: no save was ever finished"; exit 1; }

if [ "$(id -u)" -eq 0 ] && mkdir "$work/disk" && mount -t tmpfs -o size=6m tmpfs "$work/disk" 2>/dev/null; then
  newest=-1
  mkdir "$work/disk/saves"
  "$PROGRAM" save "$work/disk/saves" 2>"$work/full" &
  saver=$!
  end=$((SECONDS + seconds))
  while [ $SECONDS -lt $end ]; do
    head -c $((RANDOM * 200)) /dev/zero >"$work/disk/other" 2>/dev/null # what others keep on the disk, now less, now more
    sleep "0.0$((RANDOM % 9))"
  done
  kill -9 "$saver"
  wait "$saver" 2>/dev/null
  saver=
  look "$work/disk/saves" "on a full disk"
  echo "a disk that was full $(grep -c 'No space left' "$work/full") times: newest step $newest, whole"
else
  echo "skipped: a full disk (needs root and tmpfs)"
fi

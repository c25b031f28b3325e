#!/usr/bin/env bash
# Kills every process of a run (launcher, its supervisor, agents, ranks) with every signal, N times each, and checks that
# nothing of the run is alive after two seconds, that the exit code is right and that the report names the culprit.
#   tests/kill.sh [N [SECONDS]]   N times each (default 20), within so many seconds (default 2; a machine that is busy with
#                                 other things may need more); the launcher of build/release, or $DEEPSPEED
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
exec python3 "$root/tests/hosts/kill.py" "${DEEPSPEED:-$root/build/release/bin/deepspeed}" "${1:-20}" "${2:-2}"

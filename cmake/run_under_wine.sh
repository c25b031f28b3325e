#!/bin/sh
# Runs a Windows program of a cross build: run_under_wine.sh PROGRAM.exe [ARGUMENTS]. The wine prefix (its "C:" drive)
# lies in the build tree, so that nothing of the user's own is touched; no display is needed.
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
WINEPREFIX="${DEEPSCALE_WINEPREFIX:-$here/build/wine}"
WINEDEBUG="${WINEDEBUG:--all}"
WINEDLLOVERRIDES="${WINEDLLOVERRIDES:-mscoree,mshtml,winemenubuilder.exe=}" # no downloads of Mono or Gecko
export WINEPREFIX WINEDEBUG WINEDLLOVERRIDES
unset DISPLAY WAYLAND_DISPLAY
mkdir -p "$(dirname "$WINEPREFIX")"
# On a busy machine wine itself loses its server's connection now and then: that says nothing of the program.
run() {
  errors="$(mktemp)"
  for attempt in 1 2 3; do
    "$@" 2>"$errors"
    status=$?
    cat "$errors" >&2
    [ $status -ne 0 ] && grep -q '^wine client error' "$errors" || break
    echo "wine failed, not the program; attempt $attempt of 3" >&2
  done
  rm -f "$errors"
  exit $status
}
for wine in /usr/lib/wine/wine64 wine64 wine; do # Debian's "wine" nags about 32-bit programs
  command -v "$wine" >/dev/null 2>&1 && run "$wine" "$@"
done
echo "no wine found; install the package wine64" >&2
exit 127

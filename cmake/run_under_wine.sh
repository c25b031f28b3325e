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
for wine in /usr/lib/wine/wine64 wine64 wine; do # Debian's "wine" nags about 32-bit programs
  command -v "$wine" >/dev/null 2>&1 && exec "$wine" "$@"
done
echo "no wine found; install the package wine64" >&2
exit 127

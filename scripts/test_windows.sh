#!/usr/bin/env bash
# Builds all parts that need no torch for Windows (mingw-w64) and runs their tests under wine: the same list of tests as
# Linux has, which is checked. Installs what is missing; needs no display; keeps to build/ (wine's "C:" drive too).
#   scripts/test_windows.sh [arguments of ctest]     for instance: scripts/test_windows.sh -R process_test
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit
BUILD="$ROOT/build/windows-mingw"
export DEEPSCALE_WINEPREFIX="$ROOT/build/wine" WINEDEBUG=-all

has_mingw() {
  command -v x86_64-w64-mingw32-g++-posix >/dev/null && version_at_least "$(x86_64-w64-mingw32-g++-posix -dumpfullversion)" 12
}
wine_program() {
  local program
  for program in "/usr/lib/wine/$1" "$1"; do command -v "$program" && return; done
  return 1
}
windows_needs() {
  system_needs | grep -E '^(g\+\+|cmake|ninja-build|nlohmann-json3-dev|libcli11-dev|libfmt-dev|libspdlog-dev|libhwy-dev|libxxhash-dev|libgtest-dev|libgmock-dev|liburing-dev)\|'
  cat <<'NEEDS'
g++-mingw-w64-x86-64-posix|has_mingw|compiler for Windows programs
googletest|test -f /usr/src/googletest/CMakeLists.txt|C++ tests, as sources
wine64|wine_program wine64|runs Windows programs
wine|wine_program wineserver|runs Windows programs
NEEDS
}

build() {
  if [ -n "$DRY_RUN" ]; then
    say "   would build in build/windows-mingw"
    return 0
  fi
  logged windows-configure.log 300 cmake --preset windows-mingw || return
  logged windows-build.log 3600 cmake --build --preset windows-mingw -j "$(build_jobs)"
}

# The prefix is made once; a server that stays saves each program some seconds.
start_wine() {
  logged wine-start.log 300 "$ROOT/cmake/run_under_wine.sh" wineboot.exe --init || return
  WINEPREFIX="$DEEPSCALE_WINEPREFIX" timeout 60 "$(wine_program wineserver)" --persistent=600 || true
}
stop_wine() { WINEPREFIX="$DEEPSCALE_WINEPREFIX" timeout 60 "$(wine_program wineserver)" --kill || true; }

test_names() { ctest --test-dir "$1" --show-only | sed -n 's/^ *Test *#[0-9]*: //p' | sort; }

# What ctest runs here must be what it runs on Linux.
same_list() {
  logged native-configure.log 300 cmake --preset native || return
  local here there
  here="$(test_names "$BUILD")"
  there="$(test_names "$ROOT/build/native")"
  if [ "$here" != "$there" ]; then
    say "the lists of tests differ (< Windows, > Linux):"
    diff <(printf '%s\n' "$here") <(printf '%s\n' "$there") >&2
    return 1
  fi
  say "   $(wc -l <<<"$here") test programs on both systems"
}

# wine itself hangs now and then while a process starts or ends: a test that takes too long gets a second chance, one that
# fails gets none.
tests() {
  case " $* " in *" --repeat "*) ;; *) set -- --repeat after-timeout:2 "$@" ;; esac
  limited 3000 ctest --preset windows-mingw "$@"
}

phase "system packages" system_packages windows_needs
phase "build for Windows" build
[ -n "$DRY_RUN" ] && exit 0
failed=0
phase "the same list of tests as on Linux" same_list || failed=1
phase "start of wine" start_wine
trap stop_wine EXIT
phase "C++ tests under wine" tests "$@" || failed=1
[ $failed -eq 0 ] && [ $# -eq 0 ] && say "all $(test_names "$BUILD" | wc -l) tests of the Linux list pass under wine"
exit $failed

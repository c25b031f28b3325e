#!/usr/bin/env bash
# The API reference: Doxygen over the public C++ headers and Sphinx over the Python package, with warnings as errors. Result:
# build/docs/html/index.html. Needs the build of scripts/test.sh (or another: DEEPSCALE_DOCS_PACKAGE=folder that holds deepspeed/).
# Without Doxygen, and no way to install it, the part about C++ is left out.
#   scripts/docs.sh [arguments of sphinx-build]
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT" || exit
OUT="$ROOT/build/docs"
TOOLS="$OUT/tools"
PACKAGE="${DEEPSCALE_DOCS_PACKAGE:-$ROOT/build/release/python}"

doxygen_needs() { echo "doxygen|command -v doxygen|comments of the C++ headers"; }

# In a shell of its own: what fails here ends the part about C++, and not the script.
doxygen_program() { (system_packages doxygen_needs) && { [ -n "$DRY_RUN" ] || command -v doxygen >/dev/null; }; }

# An environment of its own for the tools; the interpreter, torch and numpy are those of .venv.
tools() {
  local wanted
  wanted="$(cat docs/api/requirements.txt; "$VENV/bin/python" -VV)"
  if [ "$(cat "$TOOLS/.deepscale-requirements" 2>/dev/null)" = "$wanted" ]; then
    say "   build/docs/tools is up to date"
    return 0
  fi
  [ -n "$DRY_RUN" ] && { say "   would install docs/api/requirements.txt into build/docs/tools"; return 0; }
  rm -rf "$TOOLS"
  "$VENV/bin/python" -m venv "$TOOLS" || return
  logged docs-pip.log 600 "$TOOLS/bin/python" -m pip install --disable-pip-version-check -r docs/api/requirements.txt || return
  local site
  site="$("$TOOLS/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/deepscale-venv.pth"
  echo "$wanted" >"$TOOLS/.deepscale-requirements"
}

headers() {
  mkdir -p "$OUT"
  (
    cat docs/api/Doxyfile
    echo "INPUT = include/deepscale"
    echo "OUTPUT_DIRECTORY = build/docs"
  ) >"$OUT/Doxyfile"
  logged docs-doxygen.log 120 doxygen "$OUT/Doxyfile"
}

pages() {
  local cpp=()
  [ -d "$OUT/xml" ] && cpp=(-t cpp -D "breathe_projects.deepscale=$OUT/xml")
  PYTHONPATH="$PACKAGE" logged docs-sphinx.log 600 "$TOOLS/bin/python" -m sphinx -W --keep-going -b html \
    "${cpp[@]}" "$@" docs/api "$OUT/html"
}

phase "Python environment" python_environment
phase "documentation tools" tools
[ -n "$DRY_RUN" ] || rm -rf "$OUT/xml" "$OUT/html"
if phase "Doxygen" doxygen_program; then
  [ -n "$DRY_RUN" ] || phase "C++ headers" headers
else
  say "   no doxygen: the reference is made without its part about C++"
fi
[ -n "$DRY_RUN" ] && exit 0
[ -f "$PACKAGE/deepspeed/__init__.py" ] || fail "no package in $PACKAGE: run scripts/test.sh first, or set DEEPSCALE_DOCS_PACKAGE"
phase "pages" pages "$@"
say "   build/docs/html/index.html"

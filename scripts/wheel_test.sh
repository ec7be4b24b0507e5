#!/usr/bin/env bash
# wheel_test.sh [PYTHON:ORT ...]: installs the wheel of dist/ into a fresh environment for each pair and runs tests/python
# there; then prints a table of what passed. A pair whose Python is not here says so, never passed over in silence.
# wheel_test.sh arm: the wheel of dist-arm/ in the emulated Python of the preset arm, beside ONNX Runtime's wheel for aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ${1:-} = arm ]]; then
  site=$PWD/build/arm/wheel/site
  rm -rf "$site"
  # The platform is the sysroot's, Debian 12: pip refuses a wheel that says it needs more.
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-input --no-index --no-deps --target "$site" --only-binary=:all: \
    --implementation cp --python-version 3.11 --platform manylinux_2_36_aarch64 --find-links dist-arm kvshare
  PYTHONPATH=$site exec build/arm/python -m pytest -q -p no:cacheprovider tests/python/package_test.py
fi
PAIRS=("$@")
[[ ${#PAIRS[@]} -gt 0 ]] || PAIRS=(3.10:1.20.1 3.11:1.20.1 3.11:1.24.4 3.11:1.32.0 3.12:1.20.1 3.12:1.24.4 3.12:1.32.0
  3.13:1.20.1 3.13:1.24.4 3.13:1.32.0)

interpreter() {  # interpreter VERSION: that Python, on PATH or among pyenv's; nothing where there is none
  local candidate
  for candidate in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if [[ -x $candidate ]] && "$candidate" -c '' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

prepare() {  # prepare VENV PYTHON ORT
  # --no-index: the wheel for this Python is in dist/, or the pair fails
  "$2" -m venv --clear "$1" &&
    "$1/bin/python" -m pip install -q --disable-pip-version-check --no-input "onnxruntime==$3" "onnx>=1.17" pytest numpy &&
    "$1/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-index --find-links dist kvshare
}

table="| Python | ONNX Runtime | tests/python |"$'\n'"|---|---|---|"
failed=0
for pair in "${PAIRS[@]}"; do
  version=${pair%%:*} ort=${pair##*:}
  python=$(interpreter "$version")
  venv=build/wheel-tests/$version-$ort log=build/wheel-tests/$version-$ort.log
  mkdir -p build/wheel-tests
  if [[ -z $python ]]; then
    result="not run: no such Python here"
  elif ! prepare "$venv" "$python" "$ort" >"$log" 2>&1; then
    result="not installed: $(grep -m 1 -i error "$log" || tail -n 1 "$log")"
    failed=1
  else
    code=0
    (cd build/wheel-tests && "./$version-$ort/bin/python" -m pytest -q -p no:cacheprovider ../../tests/python) >"$log" 2>&1 || code=$?
    result=$(tail -n 1 "$log")
    result=${result% in *}
    [[ $code = 0 ]] || { cat "$log"; result="FAILED: $result"; failed=1; }
  fi
  echo "Python $version, onnxruntime $ort: $result"
  table+=$'\n'"| $version | $ort | $result |"
done
echo
echo "$table"
exit $failed

#!/usr/bin/env bash
# wheel_test.sh [PYTHON:ORT ...]: installs the wheel of dist/ into a fresh environment for each pair and runs tests/python
# there. A pair whose Python is not here is named in the last lines, never passed over in silence.
set -euo pipefail
cd "$(dirname "$0")/.."
PAIRS=("$@")
[[ ${#PAIRS[@]} -gt 0 ]] || PAIRS=(3.10:1.20.1 3.11:1.20.1 3.11:1.24.4 3.11:1.32.0 3.12:1.20.1 3.12:1.24.4 3.12:1.32.0
  3.13:1.20.1 3.13:1.24.4 3.13:1.32.0)
passed=() absent=()
for pair in "${PAIRS[@]}"; do
  version=${pair%%:*} ort=${pair##*:}
  python=$(command -v "python$version" || true)
  [[ -n $python ]] && "$python" -c '' 2>/dev/null || python=
  for candidate in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    [[ -n $python || ! -x $candidate ]] || python=$candidate
  done
  if [[ -z $python ]]; then
    absent+=("$pair")
    continue
  fi
  venv=build/wheel-tests/$version-$ort
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input "onnxruntime==$ort" "onnx>=1.17" pytest numpy
  # --no-index: the wheel for this Python is in dist/, or the pair fails
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input --no-index --find-links dist kvshare
  echo "Python $version, onnxruntime $ort"
  (cd build/wheel-tests && "$PWD/$version-$ort/bin/python" -m pytest -q -p no:cacheprovider ../../tests/python)
  passed+=("$pair")
done
echo "passed: ${passed[*]:-none}"
[[ ${#absent[@]} = 0 ]] || echo "not run, no such Python here: ${absent[*]}"
[[ ${#passed[@]} -gt 0 ]]

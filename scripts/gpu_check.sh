#!/usr/bin/env bash
# gpu_check.sh [STEP...]: what only a card can show of the CUDA kernels. Steps, each under ten minutes; default all:
#   pack         on any machine of the project: {fmt}'s headers into build/gpu-check, for a machine without packages
#   build        nvcc and g++; GPU_ARCH=sm_90 where there is no card to ask (default native)
#   conformance  every wrapper of gpu.h on the card against the emulator: the rest rests on it
#   cases        attention against the oracle: twice on one scratch memory, and in captured graphs whose lengths change
#   sanitizer    the cases under compute-sanitizer: memcheck, racecheck, synccheck
#   bench        a measured copy, then decode and prefill, eager and as graphs; JSON
#   ncu          memory throughput, bank conflicts and stalls of decode kernels
# Results lie in ${OUT:-build/gpu-check}. A tool that is not there is said to be "not checked".
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=build/gpu-check
OUT=${OUT:-$BUILD}
ARCH=${GPU_ARCH:-native}
FMT_NAMESPACE='-DFMT_BEGIN_NAMESPACE=namespace fmt { inline namespace kvshare {'
mkdir -p "$BUILD" "$OUT"

pack() {
  local from=${FMT_INCLUDE:-/usr/include}
  mkdir -p "$BUILD/include"
  cp -r "$from/fmt" "$BUILD/include/"
}

build() {
  [[ -d $BUILD/include/fmt ]] || pack
  local flags=(-std=c++20 -O2 -Isrc -Iinclude -isystem "$BUILD/include" "$FMT_NAMESPACE" '-DFMT_END_NAMESPACE=}}')
  local cuda
  cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
  [[ -e $cuda/include/cuda_runtime.h ]] || cuda=${CUDA_HOME:-/usr/local/cuda}
  local link=(-L"$cuda/lib64" -lcudart_static -ldl -lrt -lpthread)
  local nvcc=(nvcc -std=c++20 -O3 --expt-relaxed-constexpr -Isrc -Iinclude -x cu "-arch=$ARCH" -c)
  local host=(cmake/fmt.cc src/core/check_attention.cc src/core/check_numbers.cc src/core/shapes.cc
    src/core/shared_memory.cc src/oracle/attention_oracle.cc src/cuda/attend_cuda.cc)
  local objects=() source jobs=()
  for source in "${host[@]}" src/cuda/runtime_cuda.cc tests/cuda/gpu_check.cc; do
    objects+=("$BUILD/$(basename "$source" .cc).o")
    g++ "${flags[@]}" -isystem "$cuda/include" -c "$source" -o "${objects[-1]}" & jobs+=($!)
  done
  "${nvcc[@]}" src/cuda/kernels.cu -o "$BUILD/kernels.o" & jobs+=($!)
  "${nvcc[@]}" tests/cuda/conformance.cc -o "$BUILD/conformance_card.o" & jobs+=($!)
  g++ "${flags[@]}" tests/cuda/conformance.cc src/cuda/emulation/{fiber,machine,runtime,warp_ops}.cc cmake/fmt.cc \
    -o "$BUILD/conformance_emulated" & jobs+=($!)
  local job
  for job in "${jobs[@]}"; do wait "$job"; done
  g++ "${objects[@]}" "$BUILD/kernels.o" "${link[@]}" -o "$BUILD/gpu_check"
  g++ "$BUILD/conformance_card.o" "$BUILD/runtime_cuda.o" "${link[@]}" -o "$BUILD/conformance_card"
}

conformance() {
  "$BUILD/conformance_emulated" "$BUILD/conformance.bin"
  "$BUILD/conformance_card" "$BUILD/conformance.bin" --compare
}

cases() { "$BUILD/gpu_check" cases | tee "$OUT/cases.txt"; }

sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo "not checked: no compute-sanitizer"; return; }
  local tool
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$BUILD/gpu_check" cases | tee "$OUT/$tool.txt"
  done
}

bench() { "$BUILD/gpu_check" bench "$OUT/bench.json" | tee "$OUT/bench.txt"; }

ncu() {
  command -v ncu >/dev/null || { echo "not checked: no ncu"; return; }
  command ncu --clock-control none --launch-count 30 --kernel-name regex:Decode \
    --metrics dram__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__data_bank_conflicts_pipe_lsu.sum,smsp__issue_active.avg.pct_of_peak_sustained_active \
    "$BUILD/gpu_check" cases | tee "$OUT/ncu.txt"
}

[[ $# -gt 0 ]] || set -- build conformance cases sanitizer bench ncu
for step in "$@"; do
  [[ $step =~ ^(pack|build|conformance|cases|sanitizer|bench|ncu)$ ]] ||
    { echo "gpu_check: unknown step '$step'; have pack, build, conformance, cases, sanitizer, bench, ncu" >&2; exit 64; }
  echo "gpu_check: $step"
  "$step"
done

#!/usr/bin/env bash
# gpu_check.sh [STEP...]: what only a card can show of the CUDA kernels. Steps; default all but pack:
#   pack         on any machine of the project: {fmt}'s headers into build/gpu-check, for a machine without packages
#   build        nvcc of CUDA 12 or later, g++ 11 or later, {fmt}'s headers (FMT_INCLUDE, default /usr/include);
#                GPU_ARCH=sm_90 where there is no card to ask (default native)
#   conformance  every wrapper of gpu.h on the card against the emulator: the rest rests on it
#   cases        attention against the oracle: twice on one scratch memory, and in captured graphs whose lengths change
#   memcheck, racecheck, synccheck   the cases under that tool of compute-sanitizer
#   bench        a measured copy, then the rows of bench/gpu/rows.txt, eager and as graphs
#   capture      kvshare's ops in ONNX Runtime with enable_cuda_graph; lengths change between replays
#   peers-ort    the rows in ONNX Runtime, without kvshare and with it
#   peers-torch  the rows in torch's scaled_dot_product_attention
#   ncu          memory throughput, bank conflicts and stalls of each row's kernel
#
# A step that cannot run says "not run: <why>": no card, no tool, no package. No step installs anything. capture and
# peers-ort take python3 with numpy, onnx and onnxruntime-gpu, peers-torch with numpy and torch: PYTHON names it. kvshare's
# library is build/lib/libkvshare_ort_cuda.so, or KVSHARE_ORT_CUDA_LIBRARY. A step has STEP_SECONDS (600).
#
# OUT (build/gpu-check) gets what each step printed, results.md (tables) and results.json: card, driver, date, commit. What
# earlier calls have found there stays beside it, so that each step may be a call of its own.
# Exit status: 0 every step that could run passed; 1 a step failed; 64 no such step; 77 no step could run.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/gpu-check}
OUT=${OUT:-$BUILD}
PYTHON=${PYTHON:-python3}
LIMIT=${STEP_SECONDS:-600}
ROWS=bench/gpu/rows.txt
STEPS=(build conformance cases memcheck racecheck synccheck bench capture peers-ort peers-torch ncu)
readonly NOT_RUN=77
FMT_NAMESPACE='-DFMT_BEGIN_NAMESPACE=namespace fmt { inline namespace kvshare {'

not_run() {
  echo "not run: $*"
  exit "$NOT_RUN"
}
need_tool() { command -v "$1" >/dev/null || not_run "no $1"; }
need_card() {
  command -v nvidia-smi >/dev/null || not_run "no card: there is no nvidia-smi"
  nvidia-smi -L 2>/dev/null | grep -q GPU || not_run "no card: nvidia-smi finds none"
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1) || return 0  # an old driver
  [[ ! $capability =~ ^[0-9]+\.[0-9]+$ ]] || ((${capability%.*} >= 8)) ||
    not_run "the card's compute capability is $capability; needs 8.0 or more"
}
need_built() { [[ -x $BUILD/$1 ]] || not_run "step build has not made $1"; }

pack() {
  local from=${FMT_INCLUDE:-/usr/include}
  [[ -d $from/fmt ]] || not_run "no headers of {fmt} in $from: FMT_INCLUDE names their folder"
  mkdir -p "$BUILD/include"
  cp -r "$from/fmt" "$BUILD/include/"
}

# nvcc links, so that it finds its own libraries.
build() {
  need_tool nvcc
  need_tool g++
  [[ -n ${GPU_ARCH:-} ]] || need_card
  local release
  release=$(nvcc --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p') || release=
  ((${release:-0} >= 12)) || not_run "nvcc is of CUDA ${release:-unknown}; needs 12 or later"
  [[ -d $BUILD/include/fmt ]] || pack
  local flags=(-std=c++20 -O2 -Isrc -Iinclude -isystem "$BUILD/include" "$FMT_NAMESPACE" '-DFMT_END_NAMESPACE=}}')
  local nvcc=(nvcc -std=c++20 -O3 -DNDEBUG --expt-relaxed-constexpr -Isrc -Iinclude -x cu "-arch=${GPU_ARCH:-native}" -c)
  local host=(cmake/fmt.cc src/core/check_attention.cc src/core/check_numbers.cc src/core/shapes.cc
    src/core/shared_memory.cc src/oracle/attention_oracle.cc src/cuda/attend_cuda.cc tests/cuda/gpu_check.cc)
  local objects=() source jobs=() job failed=0
  for source in "${host[@]}"; do
    objects+=("$BUILD/$(basename "$source" .cc).o")
    g++ "${flags[@]}" -c "$source" -o "${objects[-1]}" & jobs+=($!)
  done
  "${nvcc[@]}" src/cuda/runtime_cuda.cc -o "$BUILD/runtime_cuda.o" & jobs+=($!)
  "${nvcc[@]}" src/cuda/kernels.cu -o "$BUILD/kernels.o" & jobs+=($!)
  "${nvcc[@]}" tests/cuda/conformance.cc -o "$BUILD/conformance_card.o" & jobs+=($!)
  g++ "${flags[@]}" tests/cuda/conformance.cc src/cuda/emulation/{fiber,machine,runtime,warp_ops}.cc cmake/fmt.cc \
    -o "$BUILD/conformance_emulated" & jobs+=($!)
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  ((!failed)) || return 1
  nvcc "${objects[@]}" "$BUILD"/{runtime_cuda,kernels}.o -o "$BUILD/gpu_check"
  nvcc "$BUILD"/{conformance_card,runtime_cuda}.o -o "$BUILD/conformance_card"
}

conformance() {
  need_card
  need_built conformance_card
  "$BUILD/conformance_emulated" "$BUILD/conformance.bin"
  "$BUILD/conformance_card" "$BUILD/conformance.bin" --compare
}

cases() {
  need_card
  need_built gpu_check
  "$BUILD/gpu_check" cases
}

sanitizer() {
  need_card
  need_tool compute-sanitizer
  need_built gpu_check
  compute-sanitizer --tool "$1" --error-exitcode 9 "$BUILD/gpu_check" cases
}

bench() {
  need_card
  need_built gpu_check
  "$BUILD/gpu_check" bench "$ROWS" "$OUT/bench.jsonl"
}

python() {
  need_card
  need_tool "$PYTHON"
  "$PYTHON" -m "$@"
}

ncu() {
  need_card
  [[ -n $(type -P ncu) ]] || not_run "no ncu"
  need_built gpu_check
  local said=$OUT/ncu.log status=0
  command ncu --clock-control none --kernel-name 'regex:Decode|Prefill' --section WarpStateStats \
    --metrics dram__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__data_bank_conflicts_pipe_lsu.sum,smsp__issue_active.avg.pct_of_peak_sustained_active \
    "$BUILD/gpu_check" once "$ROWS" 2>&1 | tee "$said" || status=${PIPESTATUS[0]}
  ! grep -q ERR_NVGPUCTRPERM "$said" || not_run "the driver shows counters to administrators alone (ERR_NVGPUCTRPERM)"
  grep -q dram__throughput "$said" || { echo "ncu has measured no kernel"; return 1; }
  return "$status"
}

# What runs under the time limit: this script again, for one step.
inside() {
  case $1 in
    memcheck | racecheck | synccheck) sanitizer "$1" ;;
    capture) python bench.gpu.capture ;;
    peers-ort) python bench.gpu.peers onnxruntime "$ROWS" "$OUT/peers-ort.jsonl" ;;
    peers-torch) python bench.gpu.peers torch "$ROWS" "$OUT/peers-torch.jsonl" ;;
    *) "$1" ;;
  esac
}

facts() {
  local card
  card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1) || card=
  [[ $card == *,* ]] || card='none, none'
  echo "card ${card%,*}"
  echo "driver ${card##*, }"
  echo "date $(date -u +%FT%TZ)"
  echo "commit $(git describe --always --dirty 2>/dev/null || echo 'not known')"
}

# Runs a step under the limit, shows and keeps what it prints, and writes its line of steps.tsv. Sets `outcome`.
run_step() {
  local step=$1 status=0 begin=$SECONDS why=
  rm -f "$OUT/$step.jsonl"
  BUILD=$BUILD OUT=$OUT PYTHON=$PYTHON timeout -k 10 "$LIMIT" bash scripts/gpu_check.sh --inside "$step" 2>&1 | tee "$OUT/$step.txt" |
    { grep --line-buffered -v '^not run: ' || true; } || status=${PIPESTATUS[0]}
  case $status in
    0) outcome=ok ;;
    "$NOT_RUN") outcome='not run' why=$(tail -n 1 "$OUT/$step.txt") why=${why#not run: } ;;
    124 | 137) outcome=failed why="not done in $LIMIT seconds" ;;
    *) outcome=failed why="exit status $status; $step.txt has its words" ;;
  esac
  echo "gpu_check: $step: $outcome${why:+: $why}"
  { grep -v "^$step"$'\t' "$OUT/steps.tsv" || true; } >"$OUT/steps.tsv.part"
  printf '%s\t%s\t%s\t%s\t%s\n' "$step" "$outcome" $((SECONDS - begin)) "$(date -u +%FT%TZ)" "$why" >>"$OUT/steps.tsv.part"
  mv "$OUT/steps.tsv.part" "$OUT/steps.tsv"
}

main() {
  local step outcome failed=0 passed=0 known=" pack ${STEPS[*]} "
  for step in "$@"; do
    [[ $known == *" $step "* ]] || { echo "gpu_check: unknown step '$step'; have$known" >&2; exit 64; }
  done
  mkdir -p "$BUILD" "$OUT"
  touch "$OUT/steps.tsv"
  facts >"$OUT/facts.txt"
  for step in "$@"; do
    run_step "$step"
    case $outcome in
      ok) passed=1 ;;
      failed) failed=1 ;;
    esac
  done
  if command -v "$PYTHON" >/dev/null; then
    "$PYTHON" -m bench.gpu.report "$OUT" "$ROWS"
    echo "gpu_check: $OUT/results.md, $OUT/results.json"
  else
    echo "gpu_check: no $PYTHON: no results.md, no results.json; $OUT/steps.tsv has the outcomes"
  fi
  ((!failed)) || exit 1
  ((passed)) || exit "$NOT_RUN"
}

if [[ ${1:-} == --inside ]]; then
  inside "$2"
else
  [[ $# -gt 0 ]] || set -- "${STEPS[@]}"
  main "$@"
fi

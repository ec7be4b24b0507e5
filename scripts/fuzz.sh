#!/usr/bin/env bash
# fuzz.sh SECONDS [TARGET...]: runs the fuzz targets that the preset `fuzz` built, side by side, each for SECONDS. Corpora
# grow in build/fuzz/corpus/, findings lie in build/fuzz/found/; the exit code is 1 if there is one. A finding that is
# fixed goes to tests/fuzz/found/<target>/, where `make test` replays it. FUZZ_TIMEOUT=20 is what one input may take, by
# the clock: on a machine with other work, more.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ ${1:-} =~ ^[0-9]+$ ]] || { echo "usage: fuzz.sh SECONDS [TARGET...]" >&2; exit 64; }
seconds=$1
timeout=${FUZZ_TIMEOUT:-20}
shift
[[ $# -gt 0 ]] || set -- model text_graph npz attention
work=build/fuzz
mkdir -p "$work/found"
.venv/bin/python tests/fuzz/seeds.py "$work/seeds"

declare -A running
for target in "$@"; do
  mkdir -p "$work/corpus/$target" "$work/seeds/$target"
  options=(-max_total_time="$seconds" -timeout="$timeout" -report_slow_units="$timeout" -rss_limit_mb=2048
    -print_final_stats=1 -artifact_prefix="$work/found/$target-")
  case $target in
    text_graph) options+=(-dict=tests/fuzz/text_graph.dict -max_len=8192 -only_ascii=1) ;;
    attention) options+=(-max_len=512) ;;
    *) options+=(-max_len=65536) ;;
  esac
  folders=("$work/corpus/$target" "$work/seeds/$target")
  [[ ! -d tests/fuzz/found/$target ]] || folders+=("tests/fuzz/found/$target")
  {
    TIMEFORMAT='processor seconds: %U + %S'
    time UBSAN_OPTIONS=print_stacktrace=1 nice -n 15 "$work/bin/fuzz_$target" "${options[@]}" "${folders[@]}"
  } >"$work/$target.log" 2>&1 &
  running[$target]=$!
done
failed=0
of_log() { sed -n "s/^$2: *//p" "$work/$1.log"; }  # of_log TARGET FIELD
for target in "$@"; do
  if wait "${running[$target]}"; then
    echo "fuzz: $target: nothing found in $(of_log "$target" stat::number_of_executed_units) runs," \
      "$(of_log "$target" 'processor seconds') s of processor time"
  else
    echo "fuzz: $target: found $(ls "$work/found/" | grep "^$target-" | tr '\n' ' ' || true)- see $work/$target.log" >&2
    failed=1
  fi
done
exit $failed

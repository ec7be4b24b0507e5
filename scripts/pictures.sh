#!/usr/bin/env bash
# pictures.sh: docs/inspect.svg and docs/doctor.svg from what the tool prints here. Needs `make build`.
set -euo pipefail
cd "$(dirname "$0")/.."
picture() {  # picture NAME COMMAND...: paths as they are from here, long lines folded
  local name=$1
  shift
  { build/bin/kvshare "$@" || [[ $? = 1 ]]; } | sed "s|$PWD/||g" | fold -s -w 116 |
    .venv/bin/python scripts/terminal_svg.py "kvshare $1 model.onnx" >"docs/$name.svg"
}
picture inspect inspect tests/data/mixed_bias_asis/model.onnx
picture doctor doctor tests/data/e2b35_mixed_bias_asis/model.onnx

#!/usr/bin/env bash
# demo.sh: what kvshare does for a real graph with E2B's own KV map, on released ONNX Runtime. Needs `make build`.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python scripts/demo.py "$@"

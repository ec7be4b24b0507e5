#!/usr/bin/env bash
# lint.sh [--fix]: clang-format over every source file, then clang-tidy over every translation unit in build/'s compile
# commands. --fix only rewrites the files with clang-format. A unit that passed is skipped until it, a file it includes,
# its command or .clang-tidy changes.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t sources < <(git ls-files --cached --others --exclude-standard --deduplicate -- '*.cc' '*.h' '*.inc' '*.cu')
if [[ ${1:-} = --fix ]]; then
  exec .venv/bin/clang-format -i "${sources[@]}"
fi
failed=0
.venv/bin/clang-format --dry-run -Werror "${sources[@]}" || { echo "lint: \`make format\` rewrites them" >&2; failed=1; }
.venv/bin/python scripts/tidy.py build || failed=1
exit $failed

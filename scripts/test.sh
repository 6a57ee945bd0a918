#!/usr/bin/env bash
# The tests, from nothing: an environment, then pytest with what the arguments say.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh -e ".[test]"
"$py" -m pytest "$@"

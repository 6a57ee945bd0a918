#!/usr/bin/env bash
# The tests, from nothing: an environment, then pytest with what the arguments say.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh -e ".[test]"
# Four processes, on whatever machine: most tests start programs of their own, which then wait.
# A file stays in one process: its tests may go by what those before them made. Files are begun in the
# order of tests/conftest.py, the longest first.
# Properties are tried on the same examples everywhere, so that a run says something of the change
# and not of its luck; plain `pytest` draws new ones.
# Commands that tests run share their imports (tests/commands.py); plain `pytest` starts each anew.
export VGGFEAT_WARM_COMMANDS=1
# Threads that wait for one another sleep; spinning, they take the cores from the other processes.
export OMP_WAIT_POLICY=passive
# What a CPU can show of the tests of GPUs; on a machine with one: python -m pytest tests/gpu -W default
export VGGFEAT_TEST_DEVICE=${VGGFEAT_TEST_DEVICE:-cpu}
"$py" -m pytest -n 4 --dist loadfile --no-loadscope-reorder --hypothesis-profile ci "$@"

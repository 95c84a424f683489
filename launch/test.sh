#!/usr/bin/env bash
# Runs the tests, setting the environment up first where needed. Arguments go to pytest: launch/test.sh -k config
#
# TEST_WORKERS  files tested side by side (3, because many wait for processes they start; 0: one after the other, in this process)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/setup.sh

# Tests use files of this machine only, and tensors too small to gain from threads.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}

exec .venv/bin/python -m pytest -q --durations=15 --numprocesses="${TEST_WORKERS:-3}" --dist=loadfile "$@"

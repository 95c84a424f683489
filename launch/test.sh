#!/usr/bin/env bash
# Runs the tests, setting the environment up first where needed.
#
#   launch/test.sh [--all] [arguments of pytest, such as -k config]
#
# --all         also the tests marked slow, up to an hour more: training as several processes, runs that are killed again
#               and again, real servers, the quickstart, the walkthrough; CI runs a part of them
# TEST_WORKERS  files tested side by side (2; 0: one after the other, in this process)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chosen=(-m "not slow")
if [[ ${1:-} == --all ]]; then
    chosen=()
    shift
else
    printf 'Leaving out the tests marked slow; launch/test.sh --all runs them too.\n'
fi

launch/setup.sh

# Tests use files of this machine only, and tensors too small to gain from threads.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}

exec .venv/bin/python -m pytest -q --durations=50 --numprocesses="${TEST_WORKERS:-2}" --dist=loadfile "${chosen[@]}" "$@"

#!/usr/bin/env bash
# Proves the GPU side in stages (kernels, learner, learning, step, vllm), and leaves a JSON file and a log of each.
#
#   OUT=folder launch/gpu_check.sh [stage ...] [--tiny] [--again] [--limit SECONDS] [--carried FOLDER]
#
# --tiny  rehearses every stage at a tiny size, also without a GPU
#
# PYTHON  interpreter to use (default: .venv's if there is one, else python3)
# COMMIT  what is run, where this copy of the repository has no git to tell
#
# docs/performance.md says what each stage proves, and how to spend an hour on a lent machine without a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
exec "$python" -m tests.benchmarks.gpu "$@"

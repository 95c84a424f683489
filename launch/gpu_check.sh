#!/usr/bin/env bash
# Proves the GPU side: runs tests/gpu, a served model and both kernel benchmarks, and leaves logs and JSON in a folder.
#
#   OUT=folder launch/gpu_check.sh
#
# PYTHON  interpreter to use (default: .venv's if there is one, else python3)
#
# Rivals of the benchmarks (pip install -e ".[bench]") that are not installed are rows that say so.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${OUT:?name the folder for the results: OUT=folder launch/gpu_check.sh}"
mkdir -p "$OUT"
python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python

failed=0
check() {  # check "what" log-name command...
    printf '== %s\n' "$1"
    "${@:3}" 2>&1 | tee "$OUT/$2.log"
    local rc=${PIPESTATUS[0]}
    (( rc == 0 )) || { printf '== %s failed (exit %s)\n' "$1" "$rc"; failed=1; }
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || {
    printf 'gpu_check: no NVIDIA GPU here\n' >&2
    exit 1
}
check "GPU tests" tests "$python" -m pytest -q tests/gpu
check "a served model beside transformers" serve "$python" -m pytest -q -rs tests/test_real_server.py
check "head benchmark" head "$python" -m tests.benchmarks.head --out "$OUT/head_gpu.json"
check "learner benchmark" learner "$python" -m tests.benchmarks.learner --out "$OUT/learner_gpu.json"
exit "$failed"

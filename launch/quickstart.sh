#!/usr/bin/env bash
# Trains and evaluates a tiny memory builder on this machine's CPU, from nothing to a table and pictures.
#
#   ./launch/quickstart.sh [--scheme SCHEME] [--model MODEL] [--data PATH] [--eval-data PATH] [--out DIR] [--seed N]
#       [--steps-rl N] [--resume] [sft.key=value] [rl.key=value]
#
# --scheme memalpha trains one writer with calls on generated chunks of lines, in place of four agents on dialogues.
# --model smollm2 trains a pretrained chat model of 135 million weights in place of a tiny one; it takes about an hour.
# --data is a LoCoMo or LongMemEval JSON file (gz or not); without it the project generates its own corpus.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
began=$(date +%s)
"$root/launch/setup.sh"
setup_seconds=$(($(date +%s) - began))
export HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m trainer.quickstart --setup-seconds "$setup_seconds" "$@"

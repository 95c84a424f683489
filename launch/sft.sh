#!/usr/bin/env bash
# Supervised fine-tuning on the GPUs of this node (launch/node.sh says which variables it reads).
#
#   launch/sft.sh --config configs/sft_qwen3_4b_8gpu.yaml [key=value ...]
exec "$(dirname "${BASH_SOURCE[0]}")/node.sh" trainer.sft "$@"

#!/usr/bin/env bash
# Reinforcement learning on the GPUs of this node (launch/node.sh says which variables it reads).
#
#   launch/rl.sh --config configs/rl_qwen3_4b_8gpu.yaml [key=value ...]
exec "$(dirname "${BASH_SOURCE[0]}")/node.sh" trainer.rl "$@"

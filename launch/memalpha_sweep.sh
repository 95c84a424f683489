#!/usr/bin/env bash
# The published weights of Mem-alpha, one run after the other: beta (compression) and gamma (validity of contents).
#
#   launch/memalpha_sweep.sh --config configs/memalpha_qwen3_4b_32gpu.yaml [key=value ...]
#
# Each run has a folder of its own, runs/memalpha_b0.05_g0.1 and so on; the same command goes on where it stopped.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
for weights in "0.0 0.1" "0.05 0.1" "0.2 0.1" "0.4 0.1" "0.05 0.0"; do
    read -r beta gamma <<<"$weights"
    own=(reward.memalpha.beta="$beta" reward.memalpha.gamma="$gamma" out="runs/memalpha_b${beta}_g${gamma}" resume=auto)
    # without a judge of contents there is nobody to ask
    [[ $gamma == 0.0 ]] && own+=(reward.memalpha.validity=rules reward.validator=null)
    "${MEMALPHA_RUN:-$here/rl.sh}" "$@" "${own[@]}"
done

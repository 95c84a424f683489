#!/usr/bin/env bash
# Trains on the GPUs of this node; launch/sft.sh and launch/rl.sh name the module.
#
#   launch/node.sh MODULE --config FILE [key=value ...]
#
# GPUS_PER_NODE      processes to start (default: one for each GPU that nvidia-smi lists)
# ACCELERATE_CONFIG  configs/accelerate/zero2.yaml, or another of that folder
# Several nodes: launch/multinode.sh MODULE, or launch/slurm.sbatch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${GPUS_PER_NODE:-} ]]; then
    command -v nvidia-smi > /dev/null || {
        printf 'launch: GPUS_PER_NODE is not set and there is no nvidia-smi to count GPUs with\n' >&2
        exit 2
    }
    GPUS_PER_NODE=$(nvidia-smi --list-gpus | wc -l)
fi
# port 0: any free one, so that two runs on a node do not meet
export GPUS_PER_NODE NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=0
export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-configs/accelerate/zero2.yaml}
exec launch/multinode.sh "$@"

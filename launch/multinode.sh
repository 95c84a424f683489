#!/usr/bin/env bash
# Starts this node's part of a run on NNODES nodes; start it once on every node.
#
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=10.0.0.1 GPUS_PER_NODE=8 launch/multinode.sh MODULE --config FILE [key=value ...]
#
# MODULE             trainer.sft or trainer.rl
# NNODES             nodes of the run
# NODE_RANK          number of this node, from 0
# MASTER_ADDR        address of node 0, as every node reaches it
# MASTER_PORT        free port there (29500)
# GPUS_PER_NODE      processes to start on each node
# ACCELERATE_CONFIG  configs/accelerate/zero2_multinode.yaml, or another of that folder
#
# To stop a run: SIGTERM to this process. The launcher passes it on, every process ends the step in hand and saves; from torch
# 2.12 on it waits TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (600) before it kills, torch 2.11 always 30. A step may be longer:
# SIGUSR1 to the training processes themselves stops them the same way, and the launcher lets it pass.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { printf 'launch: %s\n' "$*" >&2; exit 2; }
count() {  # count NAME LOWEST: the variable is a whole number of at least LOWEST
    if [[ ! ${!1} =~ ^(0|[1-9][0-9]*)$ ]] || (( ${!1} < $2 )); then
        stop "$1 is '${!1}'; it must be a whole number of at least $2"
    fi
}

for name in NNODES NODE_RANK MASTER_ADDR GPUS_PER_NODE; do
    [[ -n ${!name:-} ]] || stop "$name is not set: see the head of launch/multinode.sh"
done
MASTER_PORT=${MASTER_PORT:-29500}
ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-configs/accelerate/zero2_multinode.yaml}
count NNODES 1
count NODE_RANK 0
count GPUS_PER_NODE 1
count MASTER_PORT 0
(( NODE_RANK < NNODES )) || stop "NODE_RANK is $NODE_RANK, but NNODES is $NNODES: ranks go from 0 to $((NNODES - 1))"
(( MASTER_PORT > 0 || NNODES == 1 )) || stop "MASTER_PORT is 0 (any free port): several nodes need one they all know"
[[ -f $ACCELERATE_CONFIG ]] || stop "ACCELERATE_CONFIG: no file '$ACCELERATE_CONFIG'"
(( $# > 0 )) || stop "name the module to run: launch/multinode.sh trainer.sft --config FILE"

accelerate=$(command -v accelerate || true)
[[ -n $accelerate || ! -x .venv/bin/accelerate ]] || accelerate=$PWD/.venv/bin/accelerate
[[ -n $accelerate ]] || stop "no accelerate on PATH and no .venv here: run launch/setup.sh cuda first"

command=(
    "$accelerate" launch --config_file "$ACCELERATE_CONFIG"
    --num_processes $((NNODES * GPUS_PER_NODE)) --num_machines "$NNODES" --machine_rank "$NODE_RANK"
    --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"
    -m "$@"
)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
trap '' USR1  # stays ignored through exec; a training process sets its own handler

printf '+'
printf ' %q' "${command[@]}"
printf '\n'
exec "${command[@]}"

#!/usr/bin/env bash
# Serves a checkpoint by vLLM and, beside it, a memory server that builds with it; one Ctrl-C or SIGTERM ends both.
#
#   launch/serve_all.sh MODEL_DIR [--root DIR] [arguments of membuilder.serve ...]
#
# MODEL_DIR  what trainer.export or a run's OUT/model holds
# --root     folder of the memories (memories)
# Arguments of membuilder.serve follow, such as --port 8801, --scheme memalpha or --answer-model NAME.
#
# MODEL_PORT     port of the vLLM server (8000)
# MODEL_OPTIONS  further options of it, such as "--max-model-len 8192"
# VLLM_API_KEY   key that it asks for; the memory server shows it (default: none is asked for)
# PYTHON         interpreter that has vLLM (default: .venv's if there is one, else python3)
# Either server's end ends the other one. The memory server is stopped first, so that it finishes what it is reading.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'serve_all: %s\n' "$*" >&2; }
stop() { say "$*"; exit 2; }
fail() { say "$*"; exit 1; }
(( $# > 0 )) || stop "name the model's folder: launch/serve_all.sh MODEL_DIR [arguments of membuilder.serve]"
folder=$1
shift
[[ " $* " == *" --root"* ]] || set -- --root memories "$@"
[[ " $* " != *" --mcp-stdio"* ]] || stop "--mcp-stdio is for a program that starts the memory server itself; leave it out"
model_port=${MODEL_PORT:-8000}
read -ra model_options <<< "${MODEL_OPTIONS:-}"

python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python

model='' memory=''

is_running() { kill -0 "$1" 2> /dev/null; }
is_ready() {
    "$python" -c 'import sys, urllib.request as http
http.build_opener(http.ProxyHandler({})).open(sys.argv[1], timeout=5)' "$1" 2> /dev/null
}

# shellcheck disable=SC2329  # the trap calls it
# end PID NAME: SIGTERM, and SIGKILL for what is left of its group then
end() {
    [[ -n $1 ]] || return 0
    if is_running "$1"; then
        say "stopping the $2"
        kill -TERM "$1"
        for _ in {1..600}; do
            is_running "$1" || break
            sleep 0.2
        done
    fi
    kill -KILL -- "-$1" 2> /dev/null || true
}

# shellcheck disable=SC2329
finish() {
    trap '' INT TERM
    end "$memory" "memory server"
    end "$model" "model's server"
}
! is_ready "http://127.0.0.1:$model_port/health" || stop "a server answers at port $model_port already: set MODEL_PORT"
trap 'exit 0' INT TERM
trap 'finish' EXIT

# each server in a session of its own, which a Ctrl-C on the terminal does not reach
setsid "$root/launch/serve.sh" "$folder" "$model_port" 1 ${model_options[@]+"${model_options[@]}"} &
model=$!
until is_ready "http://127.0.0.1:$model_port/health"; do
    is_running "$model" || fail "the model's server ended before it was ready"
    sleep 1
done

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
setsid "$python" -m membuilder.serve --build-model "$(basename "$folder")" --build-provider vllm \
    --build-base-url "http://127.0.0.1:$model_port/v1" "$@" &
memory=$!
wait -n "$memory" "$model" || true
is_running "$memory" || fail "the memory server ended, so the model's server is stopped"
fail "the model's server ended, so the memory server is stopped"

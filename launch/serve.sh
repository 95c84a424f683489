#!/usr/bin/env bash
# Serves a model folder (what trainer.export or a run's OUT/model holds) by vLLM's OpenAI server, on this machine only.
#
#   launch/serve.sh DIR [PORT] [TP] [options of vllm serve ...]
#
# PORT  8000
# TP    GPUs that one copy of the model is divided over (1)
# The folder is checked first (trainer.check_model). Sampling starts from vLLM's own settings, not from those of the
# model's generation_config.json, as in training; end tokens are read from there all the same.
# Without a GPU the model is served eagerly and in its checkpoint's type; later options overrule all of these.
#
# VLLM_API_KEY  key that callers must show (default: none is asked for)
# PYTHON  interpreter that has vLLM (default: .venv's if there is one, else python3)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

stop() { printf 'serve: %s\n' "$*" >&2; exit 2; }
(( $# > 0 )) || stop "name the model's folder: launch/serve.sh DIR [PORT] [TP]"
folder=$1 port=${2:-8000} tensor_parallel=${3:-1}
shift $(($# < 3 ? $# : 3))
[[ -f $folder/config.json || -f $folder/adapter_config.json ]] || stop "no config.json in '$folder': python -m trainer.export CHECKPOINT DIR makes such a folder"
[[ " $* " != *" --api-key"* ]] || stop "give the key as VLLM_API_KEY: what stands on a command line is there for all to read"
for number in "$port" "$tensor_parallel"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || stop "'$number' is no number: launch/serve.sh DIR [PORT] [TP]"
done

python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]] && python=$root/.venv/bin/python

PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$python" -m trainer.check_model "$folder"

# read by vLLM's CPU build only: GiB of cache, and no pinning of its threads to cores
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-4} VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export VLLM_NO_USAGE_STATS=1
# Without a GPU vLLM would compile for minutes, answer wrongly in bfloat16, and turn float32 weights into bfloat16.
as_on_cpu=()
if ! nvidia-smi -L > /dev/null 2>&1; then
    dtype=$(sed -nE 's/^  "(torch_)?dtype": "([a-z0-9]+)",?$/\2/p' "$folder/config.json" | head -n 1)
    as_on_cpu=(--enforce-eager --dtype "${dtype:-auto}")
fi
# not `vllm serve`: that asks for a package of the name vllm, and the CPU build has another
command=(
    "$python" -m vllm.entrypoints.openai.api_server --model "$folder" --host 127.0.0.1 --port "$port"
    --tensor-parallel-size "$tensor_parallel" --served-model-name "$(basename "$folder")" --generation-config vllm
    "${as_on_cpu[@]}" "$@"
)
printf '+'
printf ' %q' "${command[@]}"
printf '\n'
exec "${command[@]}"

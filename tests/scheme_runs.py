"""The arguments of small SFT and RL runs, of every scheme: runs that are killed, and runs on two processes."""

from pathlib import Path

from tests import keeper

SMALL = ["data.num_train=8", "data.num_held_out=1", "data.num_steering=1", "max_tokens=600", "keep_last=2"]
TINY = ["vocab_size=600", "hidden_size=32", "num_layers=2", "intermediate_size=64"]
SFT = [
    "--config", "configs/quickstart_sft.yaml", *SMALL, *(f"model.tiny.{size}" for size in TINY), "data.num_extra=0",
    "max_steps=40", "sessions_per_step=8", "save_every=6",
]  # fmt: skip
RL = [
    "--config", "configs/quickstart_rl.yaml", *SMALL, "engine=transformers", "num_steps=5", "sessions_per_step=3",
    "num_rollouts=3", "updates_per_step=2", "save_every=2", "parity_every=3", "eval_every=5", "journal=true",
]  # fmt: skip

MEMALPHA = [
    *SMALL, "scheme=memalpha", "memalpha.response_format=compact", "memalpha.prompts.template_set=compact",
    "model.dtype=float32", "data.num_chunks=3", "shared_bound=1e-5",
]  # fmt: skip
MEMALPHA_SFT = [
    *MEMALPHA, *(f"model.tiny.{size}" for size in TINY), "optim.lr=3e-3", "optim.max_grad_norm=1", "max_steps=40",
    "sessions_per_step=8", "save_every=6",
]  # fmt: skip
MEMALPHA_RL = [
    *MEMALPHA, "engine=transformers", "dense=false", "instances_per_step=2", "reward.baseline=episode", "num_steps=5",
    "num_rollouts=3", "updates_per_step=2", "save_every=2", "parity_every=3", "eval_every=5", "optim.lr=1e-3",
    "sampling.temperature=1.25", "sampling.top_p=1", "sampling.max_tokens=12", "max_model_len=4096",
    "parity_bound=0.001",
]  # fmt: skip
SCHEMES = ("four_agents", "memalpha", "turns")
"""The two that are built in, the second on whole episodes, and one of two turns a session (tests/keeper.py)."""


def commands(scheme: str, folder: Path) -> tuple[list[str], list[str]]:
    """The arguments of SFT and RL with a scheme, but for `out` and where RL starts; a folder scheme is made there."""
    if scheme == "memalpha":
        return MEMALPHA_SFT, MEMALPHA_RL
    if scheme == "four_agents":
        return SFT, RL
    own = f"scheme={keeper.write(folder / 'clerk', keeper.SEVERAL_TURNS)}"
    return [*SFT, own], [*RL, own]

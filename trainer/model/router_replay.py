"""Tokens go to the experts that the engine chose for them (rollout routing replay, arXiv 2510.11370).

The engine rounds otherwise than the trainer, and where two experts are nearly as good that is enough to choose another
one: the log-prob of a token then jumps. Here a router's choice is replaced and nothing else: it computes the weights of
the experts from its own logits, by its own rule, and they have their gradient. A router of transformers chooses by one
`torch.topk` over all experts; while it runs, that call is answered with what the engine chose.
Letters: N tokens, L layers with a router, k experts of a token, E experts of a layer.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from membuilder.errors import ConfigError
from rollout.routed_experts import RoutedExperts, RouterReplay, routers
from trainer.batching.expert_rows import UNKNOWN
from trainer.batching.packing import TrainSequence, dense_tree, pack_on

_log = logging.getLogger(__name__)

MISMATCHED, COMPARED = "sampling/router_mismatched", "sampling/router_compared"
MISMATCH = "sampling/router_mismatch"
"""Share of (token, layer) pairs in which engine and trainer chose other sets of experts."""
NUM_TRIED = 8
"""Random tokens on which routers are tried."""
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What the configurations of transformers call the number of experts."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The choices of an engine for the tokens of one forward pass, and where the trainer's own differ."""

    experts: torch.Tensor  # (N, L, k), UNKNOWN where the engine told nothing
    differs: list[torch.Tensor] = field(default_factory=list)  # (N,) bool for each router that ran

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return the counts of pairs that differ and of pairs that were compared; their ratio is `MISMATCH`."""
        return {MISMATCHED: torch.stack(self.differs).sum(), COMPARED: (self.experts[..., 0] != UNKNOWN).sum()}


_running: ContextVar[Replay | None] = ContextVar("running", default=None)


@contextmanager
def replaying(replay: Replay | None) -> Iterator[None]:
    """Let routers that run inside choose as they are told."""
    before = _running.set(replay)
    try:
        yield
    finally:
        _running.reset(before)


def contexts_of_checkpoint() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return what a layer's forward and its recomputation run in (`context_fn` of torch's checkpoint).

    A recomputation happens in the backward, where the replay of the forward is over; it counts nothing again.
    """
    now = _running.get()
    return nullcontext(), replaying(None if now is None else replace(now, differs=[]))


class _Choice(TorchFunctionMode):
    """Answers a router's `torch.topk` over its experts with what is told (N, k)."""

    def __init__(self, num_experts: int, told: torch.Tensor, differs: list[torch.Tensor]) -> None:
        super().__init__()
        self._shape, self._told, self._differs = (len(told), num_experts), told, differs

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk) or output[1].shape != self._told.shape:
            return output
        scores = args[0]
        if scores.shape != self._shape:  # such as a choice among groups of experts
            return output
        own, told = output[1], self._told
        differs = (told[:, 0] != UNKNOWN) & (own.sort(-1).values != told.sort(-1).values).any(-1)
        self._differs.append(differs)
        # a set that is the router's own keeps its order too, so that sums over experts round as they did
        chosen = torch.where(differs[:, None], told, own)
        return torch.return_types.topk((scores.gather(-1, chosen), chosen))


def _begin(router: torch.nn.Module, _) -> None:
    if (replay := _running.get()) is not None:
        told = replay.experts[:, router.replayed_layer].long()
        router.choice = _Choice(router.num_experts, told, replay.differs)
        router.choice.__enter__()


def _end(router: torch.nn.Module, *_) -> None:
    if router.choice is not None:
        router.choice.__exit__(None, None, None)
        router.choice = None


def use_router_replay(policy: torch.nn.Module, wanted: RouterReplay) -> None:
    """Let the routers of a `Policy` be told what to choose, where that is proved. ConfigError where it must be."""
    if wanted is RouterReplay.NEVER:
        return
    problem = _tried(policy)
    if problem is not None and wanted is RouterReplay.ALWAYS:
        raise ConfigError(f"router_replay=always: {problem}; set router_replay=auto")
    if problem is not None and _is_mixture(policy.model):
        _log.warning("the engine's choices of experts are not replayed: %s", problem)
    policy.replays_experts = problem is None


def _tried(policy: torch.nn.Module) -> str | None:
    """Prepare the routers; tell why not where that fails, or where they do not return just what they are told."""
    found, name = list(routers(policy.model).values()), type(policy.model).__name__
    if not found:
        return f"the routers of {name} are not known here" if _is_mixture(policy.model) else f"{name} mixes no experts"
    hooks = []
    for layer, router in enumerate(found):
        router.replayed_layer, router.choice = layer, None
        hooks += [router.register_forward_pre_hook(_begin), router.register_forward_hook(_end, always_call=True)]
    problem = _disobedient(policy, found)
    if problem is None:
        return None
    for hook in hooks:
        hook.remove()
    return f"the routers of {name} {problem}"


def _is_mixture(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in NUM_EXPERTS)


@torch.no_grad()
def _disobedient(policy: torch.nn.Module, found: list[torch.nn.Module]) -> str | None:
    """Tell what routers do on random tokens other than return the experts that they are told."""
    sizes = {(router.num_experts, router.top_k) for router in found}
    if len(sizes) > 1:
        return f"choose among different numbers of experts ({sorted(sizes)})"
    ((num_experts, top_k),) = sizes
    draw = random.Random(0)
    ids = tuple(draw.randrange(policy.model.get_input_embeddings().weight.shape[0]) for _ in range(NUM_TRIED))
    told = np.array([[draw.sample(range(num_experts), top_k) for _ in found] for _ in ids])
    sequence = TrainSequence(
        prompt_token_ids=ids, completion_token_ids=ids[:1], routed_experts=(RoutedExperts.of(told),)
    )
    outputs: list[object] = []
    watched = [router.register_forward_hook(lambda _, __, output: outputs.append(output)) for router in found]
    policy.replays_experts = True
    try:
        policy.eval()(pack_on([dense_tree(sequence)], found[0].weight.device, policy.windows))
    finally:
        policy.replays_experts = False
        for hook in watched:
            hook.remove()
    if not all(isinstance(output, tuple) and len(output) == 3 for output in outputs):
        return "return something else than logits, weights and experts"
    chosen = torch.stack([output[2] for output in outputs], dim=1).cpu().numpy()
    return None if np.array_equal(np.sort(chosen), np.sort(told)) else "choose by other means than topk"


def take_mismatch(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics with MISMATCH in place of the two counts; without it where the engine reported nothing."""
    counts = {name: metrics.get(name, 0.0) for name in (MISMATCHED, COMPARED)}
    others = {name: value for name, value in metrics.items() if name not in counts}
    return others | ({MISMATCH: counts[MISMATCHED] / counts[COMPARED]} if counts[COMPARED] else {})


def no_counts(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the counts of a batch of which the engine told nothing: processes add up the same names."""
    return {name: torch.zeros((), device=device) for name in (MISMATCHED, COMPARED)}

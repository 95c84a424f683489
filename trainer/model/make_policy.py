"""A model becomes a policy only if it then gives the log-probs that it gave by itself.

Ours replaces a model's head and, where prompts are shared, its attention. What that would get wrong differs from one
architecture to the next and grows with every release of transformers. So besides what is known to be wrong, a few
random sequences are run by the untouched model first, and by the policy made of it after.
"""

import copy
import logging
import random

import torch
from transformers import PreTrainedModel

from membuilder.errors import ConfigError, ParityError
from trainer.batching.packing import TrainSequence, build_tree, pack_on
from trainer.configs import Attention, LoRAConfig
from trainer.model.dense_copies import own_logprobs
from trainer.model.head import Impl
from trainer.model.lora import WithoutAdapters, adapted_layers, add_adapters, expert_tensors
from trainer.model.policy import Policy
from trainer.model.shared_prefix import UnsharedError, use_own_layers, windows_of

_log = logging.getLogger(__name__)

OWN_FORWARD = "own_forward"
LARGEST_GAP = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Mean gap of log-probs, in nats, that rounding explains; what a wrong forward makes is far above it."""
LONGEST_WINDOW = 1024
"""Sliding windows up to so many tokens are outgrown by the random sequences; longer ones would cost too much time."""


def make_policy(
    model: PreTrainedModel,
    attention: Attention,
    device: torch.device,
    head_impl: Impl = "auto",
    lora: LoRAConfig | None = None,
) -> Policy:
    """Return the policy made of a model, on the device. Raises ConfigError for a model that is known not to fit,
    and ParityError where the policy's numbers are not the model's.

    `auto` shares prompts where that is proved, and else runs dense copies and says why. `lora`: of the policy's
    parameters its adapters alone are trained.
    """
    _refuse_router_loss(model)
    model.to(device).eval()
    if switched_off := switch_off_dropout(model):
        _log.warning("dropout is off: %s (a sampled token has one probability)", ", ".join(switched_off))
    shared_length = 24 + max((window for window in windows_of(model) if window <= LONGEST_WINDOW), default=0)
    sequences = _random_sequences(model.get_input_embeddings().weight.shape[0], shared_length)
    expected = own_logprobs(model, sequences)
    if lora is not None:
        add_adapters(model, lora)  # what follows proves that they add nothing yet
        if experts := expert_tensors(model):
            kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in experts))
            _log.warning("experts and feed-forward layers beside them have no adapters and stay as they are: %s", kinds)
    own_attention = model.config.get_text_config()._attn_implementation
    why_dense = None if attention is not Attention.DENSE else "attention: dense"
    if why_dense is None:
        try:
            policy = Policy(model, shares_prompts=True, head_impl=head_impl)
            gap = _gap(policy, sequences, expected)
            if gap <= LARGEST_GAP[model.dtype]:
                return policy
            why_dense = f"shared prompts give other log-probs than the model's own forward, by {gap:.2g} nats a token"
        except UnsharedError as error:
            why_dense = str(error)
        if attention is Attention.SHARED:
            raise ConfigError(f"model.attention=shared: {why_dense}; set model.attention=auto or dense")
        _log.warning("prompts are not shared, every sequence is run whole: %s", why_dense)
        use_own_layers(model, own_attention)
    policy = Policy(model, shares_prompts=False, head_impl=head_impl)
    gap = _gap(policy, sequences, expected)
    if not gap <= LARGEST_GAP[model.dtype]:
        raise ParityError(
            OWN_FORWARD,
            f"{type(model).__name__} gives other log-probs than softmax(hidden @ weight.T), by {gap:.2g} nats a token: "
            "its head or what it does before is not known here, or targets are shifted; choose another model",
        )
    return policy


def make_reference(policy: Policy) -> Policy | WithoutAdapters:
    """Return what gives the numbers of a policy as it starts, however it is trained."""
    if adapted_layers(policy.model):
        return WithoutAdapters(policy)
    return copy.deepcopy(policy).eval().requires_grad_(False)


def switch_off_dropout(model: PreTrainedModel) -> list[str]:
    """Set every dropout of a model to 0; returns those that were above, as `name=value`."""
    found = {}
    for config in (model.config, model.config.get_text_config()):
        for name, value in list(vars(config).items()):
            if _is_dropout(name, value):
                found[name] = value
                setattr(config, name, 0.0)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p:
            found.setdefault(path.rpartition(".")[2], module.p)
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _is_dropout(name, value):
                found.setdefault(name, value)
                setattr(module, name, 0.0)
    return [f"{name}={value}" for name, value in found.items()]


def _is_dropout(name: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and ("drop" in name or name.endswith("pdrop"))


@torch.no_grad()
def _gap(policy: Policy, sequences: list[TrainSequence], expected: torch.Tensor) -> float:
    found = policy.eval()(pack_on([build_tree(sequences)], expected.device, policy.windows))
    return float((found.logprobs - expected).abs().mean())


def _refuse_router_loss(model: PreTrainedModel) -> None:
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ConfigError(
            "output_router_logits=true in the model's config.json asks for a loss that balances its experts, which is "
            "never added here: set it to false"
        )


def _random_sequences(vocabulary: int, shared_length: int) -> list[TrainSequence]:
    """Two prompts of one session with two completions each, in the order in which a tree of them is packed."""
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(length))

    session = ids(shared_length)
    prompts = [(*session, *ids(5)), (*session, *ids(9))]
    return [
        TrainSequence(prompt_token_ids=prompt, completion_token_ids=ids(length))
        for prompt in prompts
        for length in (3, 6)
    ]

"""A model folder, checked as a whole before anything is built on it: by SFT, RL, both engines and launch/serve.sh.

    policy = load_policy("runs/sft/model", lengths={"max_model_len": 26000})
    policy.model, policy.tokenizer, policy.stop_ids

What transformers itself would take in silence is refused: random weights in place of missing ones, token ids without
an embedding, answers that can never end, positions that the model was not made for.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from membuilder.errors import ConfigError
from membuilder.model_folders import loading
from membuilder.quiet import hide_loading_bars
from membuilder.text import first_of
from rollout.chat_template import chat_format
from rollout.tokens import load_tokenizer

NUM_NAMED = 3
"""Weights and tokens that a message names."""
STRETCHING = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose factor comes on top of the positions in the config, as vLLM counts them too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyFolder:
    model: PreTrainedModel
    """Its configurations name `stop_ids`, so that whatever is saved of it stops where it stopped here."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """Every token that ends an answer: by the chat template, the tokenizer, the config or the generation config."""
    unserved_stop_ids: tuple[int, ...]
    """Those of them at which vLLM's server would not stop: in the folder as it is only others name them."""


def load_policy(
    path: str | Path,
    *,
    dtype: Any = "auto",
    weights: bool = True,
    lengths: Mapping[str, int] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> PolicyFolder:
    """Return the model and tokenizer of a folder or hub name. Raises ConfigError for whatever is wrong with them.

    `lengths` holds the configuration's keys that say how long a sequence may be. Without `weights` the model stands on
    PyTorch's meta device: everything is checked, and nothing takes memory.
    """
    hide_loading_bars()
    _refuse_adapter(path)
    with loading("model", path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    _refuse_quantized(path, config)
    check_lengths(path, config, lengths or {})
    tokenizer = load_tokenizer(str(path), template_kwargs)
    with loading("model", path):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
            **({} if weights else {"device_map": "meta"}),
        )
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' SDPA leaves the cap on scores out, and says nothing
    _refuse_partial(path, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    num_embeddings = model.get_input_embeddings().num_embeddings
    _refuse_unknown_tokens(path, tokenizer, num_embeddings)
    stop_ids = _stop_ids(path, tokenizer, model, num_embeddings)
    served = {tokenizer.eos_token_id, *_ids(model.generation_config.eos_token_id)}
    _name_stop_ids(tokenizer, model, stop_ids)
    return PolicyFolder(
        model=model,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        unserved_stop_ids=tuple(each for each in stop_ids if each not in served),
    )


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model can read, scaling of its rotary positions considered; None: any number."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, Mapping)]
    longest = [positions]
    for kind in kinds:
        if kind.get("rope_type") in STRETCHING:
            base = kind.get("original_max_position_embeddings") or positions
            longest.append(int(base * kind.get("factor", 1.0)))
    return max(longest)


def check_lengths(path: str | Path, config: PreTrainedConfig, lengths: Mapping[str, int]) -> None:
    """Raise ConfigError where a key allows sequences beyond the model's positions."""
    positions = num_positions(config)
    for key, length in lengths.items():
        if positions is not None and length > positions:
            raise ConfigError(
                f"{key}={length} is beyond the {positions} positions of the model at '{path}': set {key}={positions} "
                "or less, or give its config.json a scaling of rotary positions (rope_parameters) that reaches as far"
            )


def _refuse_adapter(path: str | Path) -> None:
    with loading("model", path):
        adapter = find_adapter_config_file(str(path))
    if adapter is not None:
        # with the package peft transformers would put it on its base model, and without it leave it out
        raise ConfigError(
            f"no model at '{path}': an adapter lies there (adapter_config.json): merge it into its model, such as by "
            "merge_and_unload of the package peft, and name the folder of what comes of it"
        )


def _refuse_quantized(path: str | Path, config: PreTrainedConfig) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        read = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
        raise ConfigError(
            f"the weights at '{path}' are quantized ({read.get('quant_method', 'quantization_config')}): they cannot "
            "be trained, nor swapped for trained ones; name the model they were made from, or save them dequantized"
        )


def _refuse_partial(
    path: str | Path, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[tuple]
) -> None:
    """Refuse weights that are not the model's own: transformers puts random numbers in the place of missing ones."""
    if not (missing or unexpected or mismatched):
        return
    found = [
        f"{len(names)} {what} ({first_of(sorted(names))})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [name for name, *_ in mismatched]),
        )
        if names
    ]
    remedy = "name a folder with the whole model that its config.json describes"
    if prefix := _common_prefix(missing, unexpected):
        remedy = (
            f"the names of the weights begin with '{prefix}', which a wrapper put there: save the model it wraps "
            "(accelerator.unwrap_model(model).save_pretrained), or save the weights again without that prefix"
        )
    raise ConfigError(f"the weights at '{path}' are not those of its model: {'; '.join(found)}. {remedy}")


def _common_prefix(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """Return what stands before the names of all missing weights that came, such as `module.`; None: no such thing."""
    ends = ((name, name.split(".", num)[-1]) for name in unexpected for num in range(1, name.count(".") + 1))
    found = {name.removesuffix(end) for name, end in ends if end in missing}
    return next((prefix for prefix in found if all(name.startswith(prefix) for name in unexpected)), None)


def _refuse_unknown_tokens(path: str | Path, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= num_embeddings)
    if beyond:
        named = ", ".join(f"{token!r} ({number})" for number, token in beyond[:NUM_NAMED])
        raise ConfigError(
            f"the tokenizer at '{path}' has {len(beyond)} tokens beyond the model's {num_embeddings} embeddings, such "
            f"as {named}: take the tokenizer that belongs to the model, or save the model again after "
            f"model.resize_token_embeddings({beyond[-1][0] + 1})"
        )


def _stop_ids(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, num_embeddings: int
) -> tuple[int, ...]:
    """Return the union of all end tokens, that of the chat template first."""
    named = [*_ids(chat_format(tokenizer).end_id), *_ids(tokenizer.eos_token_id)]
    for config in _ending_configs(model):
        named += _ids(config.eos_token_id)
    found = tuple(dict.fromkeys(each for each in named if each < num_embeddings))
    if not found:
        raise ConfigError(
            f"the model at '{path}' has no end token: neither its tokenizer (eos_token) nor its config.json or "
            "generation_config.json (eos_token_id) names one that has an embedding, so no answer could end; name it "
            "in tokenizer_config.json"
        )
    return found


def _ending_configs(model: PreTrainedModel) -> list[Any]:
    """Return the configurations that name end tokens: that of a model of several parts need not."""
    found = (model.config, model.config.get_text_config(), model.generation_config)
    return [config for config in found if hasattr(config, "eos_token_id")]


def _ids(named: int | list[int] | None) -> list[int]:
    return named if isinstance(named, list) else [] if named is None else [named]


def _name_stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, stop_ids: tuple[int, ...]) -> None:
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_ids[0])
    value = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    for config in _ending_configs(model):
        config.eos_token_id = value

"""An engine on transformers, which is slower than vLLM's and needs no vLLM. It holds its own copy of the weights.

On a GPU many prompts are decoded at once, padded on the left. Letters: B prompts, n completions of each, P the longest
prompt, T the most tokens of a completion, V vocabulary.
"""

import inspect
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from membuilder.errors import ConfigError
from rollout.policy_folder import load_policy, num_positions
from rollout.routed_experts import RoutedExperts, routers
from rollout.seeding import seed_everything, with_own_rng
from rollout.types import Completion, Sampled, SamplingConfig, in_order
from rollout.weights import checked

TOKENS_AT_ONCE = 2**18
"""Tokens of all the sequences that a GPU decodes together, with padding; a group that has more is decoded alone."""


class TransformersEngine:
    def __init__(
        self,
        model_dir: str | Path,
        *,
        max_model_len: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokens_at_once: int | None = None,
        routed_experts: bool = False,
    ) -> None:
        """Load the model; with `max_model_len` None sequences are as long as the model was made for.

        With `tokens_at_once` 0 one prompt is decoded after the other, as with None on a CPU; elsewhere None is
        TOKENS_AT_ONCE. With `routed_experts` completions carry the experts that the model's routers chose.
        """
        lengths = {} if max_model_len is None else {"max_model_len": max_model_len}
        policy = load_policy(model_dir, dtype=dtype, lengths=lengths)
        self._model = policy.model.to(device).eval()
        longest = num_positions(self._model.config) if max_model_len is None else max_model_len
        if longest is None:
            raise ConfigError(f"the model at '{model_dir}' tells no number of positions: give max_model_len")
        self.max_model_len = longest
        self._stop_ids = torch.tensor(policy.stop_ids, device=device)
        wanted = (0 if device == "cpu" else TOKENS_AT_ONCE) if tokens_at_once is None else tokens_at_once
        self._tokens_at_once = wanted if _takes_padding(self._model) else 0
        self._version = 0
        self._chosen: list[torch.Tensor] = []  # of the last forward, one (tokens, k) for each router
        for router in routers(self._model).values() if routed_experts else ():
            router.register_forward_hook(lambda _, __, output: self._chosen.append(output[2]))

    def generate(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> list[list[Completion]]:
        return in_order(self.stream(prompts, n, sampling, seed), len(prompts), n)

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        """Yield prompt by prompt: the completions of one are decoded together, on a GPU with those of others."""
        return with_own_rng(seed, self._finished(prompts, n, sampling, seed))

    def _finished(
        self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int
    ) -> Generator[Sampled, None, None]:
        start = 0
        for batch in in_batches(prompts, n, sampling.max_tokens, self._tokens_at_once):
            # the prompt seeds too, so that its completions are the same whichever process samples it
            seeds = [zlib.crc32(f"{seed} {prompt}".encode()) for prompt in batch]
            if self._tokens_at_once:
                found = self._sample_many(batch, n, sampling, seeds)
            else:
                seed_everything(seeds[0])
                found = self._sample(batch[0], n, sampling)
            for number, completion in enumerate(found):
                yield Sampled(start + number // n, number % n, completion)
            start += len(batch)

    @torch.no_grad()
    def _sample(self, prompt: list[int], n: int, sampling: SamplingConfig) -> list[Completion]:
        tokens = torch.tensor([prompt] * n, device=self._stop_ids.device)  # (n, P)
        cache, ids, logprobs, experts = None, [], [], []
        alive = torch.ones(n, dtype=torch.bool, device=tokens.device)
        for _ in range(sampling.max_tokens):
            out = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            experts += self._take_experts(tokens)
            token, logprob = _draw(out.logits[:, -1].float(), sampling)  # (n,), (n,)
            ids.append(token)
            logprobs.append(logprob)
            alive &= ~torch.isin(token, self._stop_ids)
            tokens = token[:, None]
            if not alive.any():
                break
        return self._completions(ids, logprobs, experts, [len(prompt)] * n)

    @torch.no_grad()
    def _sample_many(
        self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seeds: list[int]
    ) -> list[Completion]:
        """Return the n completions of each prompt, one prompt after the other; each prompt is read once."""
        device, longest = self._stop_ids.device, max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)  # (B, P)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask = torch.arange(longest, device=device) >= longest - lengths[:, None]  # (B, P)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        chances = torch.cat([torch.rand(n, sampling.max_tokens, generator=each) for each in generators]).to(device)
        out = self._model(
            input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(n, 0)  # (Bn, V)
        cache.batch_repeat_interleave(n)
        experts = [each.repeat_interleave(n, 0) for each in self._take_experts(tokens)]
        mask, place = mask.repeat_interleave(n, 0), lengths.repeat_interleave(n)
        alive, ids, logprobs = torch.ones(len(place), dtype=torch.bool, device=device), [], []
        for step in range(sampling.max_tokens):
            token, logprob = _draw(logits.float(), sampling, chances[:, step])  # (Bn,), (Bn,)
            ids.append(token)
            logprobs.append(logprob)
            alive &= ~torch.isin(token, self._stop_ids)
            if step == sampling.max_tokens - 1 or not alive.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            out = self._model(
                input_ids=token[:, None],
                attention_mask=mask.long(),
                position_ids=(place + step)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1]
            experts += self._take_experts(token[:, None])
        return self._completions(ids, logprobs, experts, place.tolist())

    def _take_experts(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return what the routers chose for tokens (B, T) in the last forward, (B, T, L, k); nothing if not asked."""
        if not self._chosen:
            return []
        rows = torch.stack(self._chosen, dim=1).unflatten(0, tokens.shape)
        self._chosen.clear()
        return [rows]

    def _completions(
        self,
        ids: list[torch.Tensor],
        logprobs: list[torch.Tensor],
        experts: list[torch.Tensor],
        prompt_lengths: list[int],
    ) -> list[Completion]:
        """Return the completions of all rows, from what each step drew and what the inputs' experts were."""
        rows = (torch.stack(columns, dim=1).tolist() for columns in (ids, logprobs))
        found = [self._completion(*row) for row in zip(*rows, strict=True)]
        if not experts:
            return found
        chosen = torch.cat(experts, dim=1).cpu().numpy()  # (rows, P + T - 1, L, k)
        longest = chosen.shape[1] - (len(ids) - 1)
        return [
            replace(each, routed_experts=RoutedExperts.of(row[longest - length : longest + len(each.token_ids) - 1]))
            for each, row, length in zip(found, chosen, prompt_lengths, strict=True)
        ]

    def _completion(self, token_ids: list[int], logprobs: list[float]) -> Completion:
        ends = set(self._stop_ids.tolist())
        length = next((i + 1 for i, token in enumerate(token_ids) if token in ends), None)
        return Completion(
            token_ids=tuple(token_ids[:length]),
            rollout_logprobs=tuple(logprobs[:length]),
            finished=length is not None,
            weight_version=self._version,
        )

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        own = self._model.state_dict()
        for name, tensor in checked(named_tensors, own):
            own[name].copy_(tensor)
        self._version = version

    def sleep(self) -> None:
        """Do nothing: the weights stay where they are."""

    def close(self) -> None:
        del self._model


def in_batches(prompts: list[list[int]], n: int, max_tokens: int, tokens_at_once: int) -> Iterator[list[list[int]]]:
    """Yield prompts that are decoded together: as many in a row as fit with their completions, but one at least."""
    batch: list[list[int]] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt))
        if batch and (len(batch) + 1) * n * (longest + max_tokens) > tokens_at_once:
            yield batch
            batch, longest = [], len(prompt)
        batch.append(prompt)
    if batch:
        yield batch


def _takes_padding(model: PreTrainedModel) -> bool:
    """Tell whether tokens that the mask hides change nothing: not where layers carry a state from token to token."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and "position_ids" in inspect.signature(model.forward).parameters
    )


def _draw(
    logits: torch.Tensor, sampling: SamplingConfig, chances: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample ids (n,) from logits (n, V), with their log-probs under the processed distribution (n,).

    With `chances` (n,), each in [0, 1), they decide, else the global generator.
    """
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        token = logits.argmax(-1)
    else:
        logprobs = _nucleus(logits / sampling.temperature, sampling.top_p).log_softmax(-1)
        if chances is None:
            token = torch.multinomial(logprobs.exp(), 1).squeeze(-1)
        else:
            reached = logprobs.double().exp().cumsum(-1)  # (n, V)
            wanted = chances.double()[:, None] * reached[:, -1:]
            token = torch.searchsorted(reached, wanted, right=True).squeeze(-1)
    return token, logprobs.gather(-1, token[:, None]).squeeze(-1)


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    if top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    beyond = probabilities.cumsum(-1) - probabilities >= top_p
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(beyond, -torch.inf))

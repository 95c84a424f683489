"""An engine on transformers, which is slower than vLLM's and needs no vLLM. It holds its own copy of the weights."""

import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import torch

from membuilder.errors import ConfigError
from rollout.policy_folder import load_policy, num_positions
from rollout.seeding import seed_everything, with_own_rng
from rollout.types import Completion, Sampled, SamplingConfig, in_order
from rollout.weights import checked


class TransformersEngine:
    def __init__(
        self,
        model_dir: str | Path,
        *,
        max_model_len: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load the model; with `max_model_len` None sequences are as long as the model was made for."""
        lengths = {} if max_model_len is None else {"max_model_len": max_model_len}
        policy = load_policy(model_dir, dtype=dtype, lengths=lengths)
        self._model = policy.model.to(device).eval()
        longest = num_positions(self._model.config) if max_model_len is None else max_model_len
        if longest is None:
            raise ConfigError(f"the model at '{model_dir}' tells no number of positions: give max_model_len")
        self.max_model_len = longest
        self._stop_ids = torch.tensor(policy.stop_ids, device=device)
        self._version = 0

    def generate(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> list[list[Completion]]:
        return in_order(self.stream(prompts, n, sampling, seed), len(prompts), n)

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        """Yield prompt by prompt: the completions of one are decoded together."""
        return with_own_rng(seed, self._finished(prompts, n, sampling, seed))

    def _finished(
        self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int
    ) -> Generator[Sampled, None, None]:
        for index, prompt in enumerate(prompts):
            # the prompt seeds too, so that its completions are the same whichever process samples it
            seed_everything(zlib.crc32(f"{seed} {prompt}".encode()))
            for number, completion in enumerate(self._sample(prompt, n, sampling)):
                yield Sampled(index, number, completion)

    @torch.no_grad()
    def _sample(self, prompt: list[int], n: int, sampling: SamplingConfig) -> list[Completion]:
        tokens = torch.tensor([prompt] * n, device=self._stop_ids.device)  # (n, P)
        cache, ids, logprobs = None, [], []
        alive = torch.ones(n, dtype=torch.bool, device=tokens.device)
        for _ in range(sampling.max_tokens):
            out = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token, logprob = _draw(out.logits[:, -1].float(), sampling)  # (n,), (n,)
            ids.append(token)
            logprobs.append(logprob)
            alive &= ~torch.isin(token, self._stop_ids)
            tokens = token[:, None]
            if not alive.any():
                break
        rows = (torch.stack(columns, dim=1).tolist() for columns in (ids, logprobs))
        return [self._completion(*row) for row in zip(*rows, strict=True)]

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


def _draw(logits: torch.Tensor, sampling: SamplingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample ids (n,) from logits (n, V), with their log-probs under the processed distribution (n,)."""
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        token = logits.argmax(-1)
    else:
        logprobs = _nucleus(logits / sampling.temperature, sampling.top_p).log_softmax(-1)
        token = torch.multinomial(logprobs.exp(), 1).squeeze(-1)
    return token, logprobs.gather(-1, token[:, None]).squeeze(-1)


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens whose probability reaches top_p (Holtzman et al. 2020)."""
    if top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    beyond = probabilities.cumsum(-1) - probabilities >= top_p
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(beyond, -torch.inf))

"""What weights the engine holds: the policy's, and while the reference answers questions its own."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from reward.judges import Verdict
from rollout.tokens import completion_text, encode_prompt
from rollout.types import Engine, SamplingConfig
from trainer.model.lora import WithoutAdapters, base_weights
from trainer.model.policy import Policy

Weights = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""Every name and tensor of a whole model, as they are now; all processes draw them together."""


class EngineWeights:
    """It loads the policy into the engine, and loads it again after each use of the engine by the reference."""

    def __init__(self, engine: Engine, policy: Weights) -> None:
        self._engine, self._policy, self._version = engine, policy, 0

    def load_policy(self, version: int) -> None:
        """Load the policy as it is now."""
        self._version = version
        self._engine.load_weights(self._policy(), version)

    def answers_of(
        self, reference: Policy | WithoutAdapters, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ) -> Callable[[Sequence[str]], Iterator[tuple[int, str | Verdict]]]:
        """Return what answers prompts greedily with the reference (`WriteAnswers` of reward/alongside.py).

        Each call loads two models, also where there is no prompt: under ZeRO-3 all processes gather the policy.
        """
        sampling = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=max_tokens)

        def write(prompts: Sequence[str]) -> Iterator[tuple[int, str | Verdict]]:
            encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
            room = self._engine.max_model_len - max_tokens
            fitting = [number for number, ids in enumerate(encoded) if len(ids) <= room]
            for number in set(range(len(prompts))) - set(fitting):
                problem = f"the answerer's prompt of {len(encoded[number])} tokens does not fit into max_model_len"
                yield number, Verdict(correct=None, reason=problem, cause="answerer_unfit_prompt")
            self._engine.load_weights(base_weights(reference.model).items(), version=0)
            try:
                for prompt, _, found in self._engine.stream([encoded[n] for n in fitting], 1, sampling, seed=0):
                    yield fitting[prompt], _text(completion_text(tokenizer, found), found.finished)
            finally:
                self.load_policy(self._version)

        return write


def _text(answer: str, finished: bool) -> str | Verdict:
    if finished and answer.strip():
        return answer
    cause = "answerer_no_text" if finished else "answerer_truncated"
    reason = "the reference wrote nothing" if finished else "the reference's answer reached policy_answer_tokens"
    return Verdict(correct=None, reason=reason, cause=cause)

"""Sessions of hand-made token ids with the lengths of the memory data, scaled to a CPU.

Four agents read one dialogue: their prompts share it and go on with instructions and memory entries of their own. Of a
prompt of the full templates the shared part was 83% on LongMemEval sessions and 66% on LoCoMo's (rule-built banks).
"""

import math
import random
from dataclasses import dataclass

from trainer.batching.packing import TrainSequence

NUM_AGENTS = 4
Session = list[TrainSequence]


@dataclass(frozen=True, kw_only=True)
class Shape:
    hidden: int = 128
    """Width, layers and vocabulary are those of the project's tiny model (trainer/model/tiny_model.py)."""
    num_layers: int = 4
    vocab: int = 4096
    num_steps: int = 20
    sessions_per_step: int = 2
    shortest: int = 128
    """Tokens of the shortest and the longest sample: 2,000 to 20,000 by about 1 to 16."""
    longest: int = 1300
    dialogue_share: float = 0.7
    """Of a sample; 0.2 is the agent's own part of the prompt and 0.1 the completion, on average."""
    max_tokens: int = 2560
    """Packed tokens of a micro-batch of ours: 40,000 by about 1 to 16."""


def sessions_of(shape: Shape) -> list[list[Session]]:
    """Per optimizer step its sessions; lengths are log-uniform, token ids follow Zipf's law, so that loss falls."""
    source = random.Random(1)
    return [[_session(shape, source) for _ in range(shape.sessions_per_step)] for _ in range(shape.num_steps)]


def _session(shape: Shape, source: random.Random) -> Session:
    size = math.exp(source.uniform(math.log(shape.shortest), math.log(shape.longest)))
    dialogue = _tokens(shape, source, round(shape.dialogue_share * size))
    samples = []
    for agent in range(NUM_AGENTS):
        rest = (1 - shape.dialogue_share) * size
        prompt = (*dialogue, agent, *_tokens(shape, source, round(rest * source.uniform(0.5, 0.83))))
        completion = _tokens(shape, source, max(2, round(rest * source.uniform(0.16, 0.5))))
        samples.append(TrainSequence(prompt_token_ids=prompt, completion_token_ids=completion))
    return samples


def _tokens(shape: Shape, source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(
        min(shape.vocab, int(math.exp(source.uniform(0, math.log(shape.vocab + 1))))) - 1 for _ in range(count)
    )


def num_completion_tokens(step: list[Session]) -> int:
    return sum(len(sample.completion_token_ids) for session in step for sample in session)


def num_real_tokens(step: list[Session]) -> int:
    """Prompts and completions of all samples, each prompt counted whole: no padding, no matter who computes it once."""
    return num_completion_tokens(step) + sum(len(sample.prompt_token_ids) for session in step for sample in session)

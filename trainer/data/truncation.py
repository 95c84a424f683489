"""What becomes of training samples longer than the model may read: stated, counted, never silent.

A sample's length is its prompt and its whole completion, end token included. The completion is never cut: a model
trained on an answer without its end learns not to stop. Nor are a prompt's head (chat template, date) and what follows
the dialogue (instructions, memory entries): without them the answer is one to another task. So `cut` takes the oldest
tokens of the dialogue, and only as many as needed. That has a price: an answer may rest on what was cut, which teaches
the model to make things up. So at most a share of a dialogue is cut; a sample that needs more is dropped and counted.

The over-long samples of a session lose the same tokens, so that they still share the rest in one packed tree; those
that fit are left as they are, and belong into a tree of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace

from membuilder.errors import ConfigError
from trainer.batching.packing import Node, TrainSequence, build_tree
from trainer.configs import OverLong


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthCounts:
    """What was done to the samples of one or many sessions."""

    num_whole: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_cut_tokens: int = 0
    """Tokens that were taken out of the dialogues of the samples that were cut."""
    num_dropped_tokens: int = 0
    """Tokens of the samples that were dropped, prompts and completions."""

    @classmethod
    def sum(cls, counts: Iterable["LengthCounts"]) -> "LengthCounts":
        columns = zip(*(astuple(each) for each in (cls(), *counts)), strict=True)
        return cls(**dict(zip(cls.__slots__, map(sum, columns), strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A session's samples of at most `max_length` tokens."""

    session: str
    whole: tuple[TrainSequence, ...]
    cut: tuple[TrainSequence, ...]
    counts: LengthCounts

    def trees(self) -> list[Node]:
        """One tree of each kind that there is: cut and whole prompts part where the cut begins."""
        return [build_tree(sequences, self.session) for sequences in (self.whole, self.cut) if sequences]


def fit(
    sequences: Sequence[TrainSequence],
    dialogue: range,
    max_length: int,
    policy: OverLong,
    *,
    session: str,
    max_cut_share: float = 0.5,
) -> Fitted:
    """The samples of one session, none longer than `max_length` tokens.

    `dialogue` says which prompt tokens are the dialogue: the same in all these prompts (`dialogue_span`). `session` is
    what errors call it. Raises ConfigError under the policy `error`, ValueError if the prompts of over-long samples
    differ before the dialogue's end.
    """
    if max_length < 2 or not 0 <= max_cut_share <= 1:
        raise ValueError(f"need max_length >= 2 and 0 <= max_cut_share <= 1, got {max_length} and {max_cut_share}")
    whole = tuple(sequence for sequence in sequences if length(sequence) <= max_length)
    long = [sequence for sequence in sequences if length(sequence) > max_length]
    if long and policy is OverLong.ERROR:
        raise ConfigError(
            f"{session}: {len(long)} of {len(sequences)} samples are longer than max_length={max_length} tokens, the "
            f"longest has {max(map(length, long))}: raise max_length or set over_long=cut or over_long=drop"
        )
    room = int(max_cut_share * len(dialogue)) if policy is OverLong.CUT else 0
    kept = [sequence for sequence in long if length(sequence) - max_length <= room]
    dropped = [sequence for sequence in long if length(sequence) - max_length > room]
    num_cut = max((length(sequence) - max_length for sequence in kept), default=0)
    return Fitted(
        session=session,
        whole=whole,
        cut=_without(kept, dialogue, num_cut),
        counts=LengthCounts(
            num_whole=len(whole),
            num_cut=len(kept),
            num_dropped=len(dropped),
            num_cut_tokens=num_cut * len(kept),
            num_dropped_tokens=sum(map(length, dropped)),
        ),
    )


def length(sequence: TrainSequence) -> int:
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


def dialogue_span(prompt: Sequence[int], without_dialogue: Sequence[int]) -> range:
    """Where the dialogue stands in a prompt, given the same prompt rendered without any turn.

    prompt (1 2 7 7 8 4 5), without (1 2 4 5) -> range(2, 5)
    """
    limit = min(len(prompt), len(without_dialogue))
    start = next((i for i in range(limit) if prompt[i] != without_dialogue[i]), limit)
    most = limit - start  # a token is part of the head or of the tail, not of both
    tail = next((i for i in range(most) if prompt[-1 - i] != without_dialogue[-1 - i]), most)
    return range(start, len(prompt) - tail)


def _without(sequences: Sequence[TrainSequence], dialogue: range, num_tokens: int) -> tuple[TrainSequence, ...]:
    """The sequences without the first `num_tokens` of the dialogue in their prompts."""
    starts = {sequence.prompt_token_ids[: dialogue.stop] for sequence in sequences}
    if len(starts) > 1 or any(len(start) < dialogue.stop for start in starts):
        raise ValueError(f"the prompts of a session differ before the end of its dialogue, at token {dialogue.stop}")
    before, after = slice(dialogue.start), slice(dialogue.start + num_tokens, None)
    prompts = (sequence.prompt_token_ids for sequence in sequences)
    shortened = (prompt[before] + prompt[after] for prompt in prompts)
    return tuple(replace(each, prompt_token_ids=ids) for each, ids in zip(sequences, shortened, strict=True))

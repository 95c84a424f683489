"""What becomes of training samples longer than the model may read: stated, counted, never silent.

A sample's length is its prompt and its whole completion, end token included. The completion is never cut: a model
trained on an answer without its end learns not to stop. Nor are a prompt's head (chat template, date) and what follows
the dialogue (instructions, memory entries): without them the answer is one to another task. So `cut` takes the oldest
tokens of the dialogue, and only as many as needed. That has a price: an answer may rest on what was cut, which teaches
the model to make things up. So at most a share of a dialogue is cut; a sample that needs more is dropped and counted.

The over-long samples of a session lose the same tokens, so that they still share the rest in one packed tree; those
that fit are left as they are, and belong into a tree of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix  # of any sequences

from membuilder.errors import ConfigError
from trainer.batching.packing import Node, TrainSequence, build_tree
from trainer.configs import OverLong

MAX_CUT_SHARE = 0.5
"""Largest share of a dialogue that is cut; a sample that needs more is dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthCounts:
    """What was done to the samples of one or many sessions."""

    num_whole: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_cut_tokens: int = 0
    """Tokens that were taken out of the dialogues of the samples that were cut."""

    def __add__(self, other: "LengthCounts") -> "LengthCounts":
        return LengthCounts(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})


def fit(
    sequences: Sequence[TrainSequence],
    dialogue: range,
    max_length: int,
    policy: OverLong,
    *,
    session: str,
) -> tuple[list[Node], LengthCounts]:
    """Return one session's samples as trees, none longer than `max_length` tokens, and what was done to long ones.

    `dialogue` says which prompt tokens are the dialogue: the same in all these prompts (`dialogue_span`). `session` is
    the trees' id and what errors call it. There is one tree of whole samples and one of cut ones, whose prompts part
    where the cut begins. Raises ConfigError under the policy `error`, ValueError if the prompts of over-long samples
    differ before the dialogue's end.
    """
    if max_length < 2:
        raise ValueError(f"need max_length >= 2, got {max_length}")
    whole = [sequence for sequence in sequences if length(sequence) <= max_length]
    long = [sequence for sequence in sequences if length(sequence) > max_length]
    if long and policy is OverLong.ERROR:
        raise ConfigError(
            f"{session}: {len(long)} of {len(sequences)} samples are longer than max_length={max_length} tokens, the "
            f"longest has {max(map(length, long))}: raise max_length or set over_long=cut or over_long=drop"
        )
    room = int(MAX_CUT_SHARE * len(dialogue)) if policy is OverLong.CUT else 0
    kept = [sequence for sequence in long if length(sequence) - max_length <= room]
    num_cut = max((length(sequence) - max_length for sequence in kept), default=0)
    trees = [build_tree(each, session) for each in (whole, _without(kept, dialogue, num_cut)) if each]
    return trees, LengthCounts(
        num_whole=len(whole), num_cut=len(kept), num_dropped=len(long) - len(kept), num_cut_tokens=num_cut * len(kept)
    )


def length(sequence: TrainSequence) -> int:
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


def dialogue_span(prompt: Sequence[int], without_dialogue: Sequence[int]) -> range:
    """Tell where the dialogue stands in a prompt, given the same prompt rendered without any turn.

    prompt (1 2 7 7 8 4 5), without (1 2 4 5) -> range(2, 5)
    """
    start = len(commonprefix([prompt, without_dialogue]))
    # a token is part of the head or of the tail, not of both
    tail = len(commonprefix([prompt[start:][::-1], without_dialogue[start:][::-1]]))
    return range(start, len(prompt) - tail)


def _without(sequences: Sequence[TrainSequence], dialogue: range, num_tokens: int) -> list[TrainSequence]:
    """Return the sequences without the first `num_tokens` of the dialogue in their prompts."""
    starts = {sequence.prompt_token_ids[: dialogue.stop] for sequence in sequences}
    if len(starts) > 1 or any(len(start) < dialogue.stop for start in starts):
        raise ValueError(f"the prompts of a session differ before the end of its dialogue, at token {dialogue.stop}")
    before, after = slice(dialogue.start), slice(dialogue.start + num_tokens, None)
    return [
        replace(each, prompt_token_ids=each.prompt_token_ids[before] + each.prompt_token_ids[after])
        for each in sequences
    ]

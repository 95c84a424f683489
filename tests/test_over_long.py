from dataclasses import dataclass

import pytest

from membuilder.errors import ConfigError
from tests.sequences import sequence
from trainer.batching.packing import Node, TrainSequence, sequences_of
from trainer.configs import OverLong
from trainer.data.truncation import LengthCounts, dialogue_span, fit, length

HEAD, DIALOGUE = (1, 2), (11, 12, 13, 14, 15, 16)
SPAN = range(2, 8)


def sample(tail: tuple[int, ...], completion: tuple[int, ...], **columns: tuple[float, ...]) -> TrainSequence:
    """A prompt of head, dialogue and `tail`."""
    return sequence(HEAD + DIALOGUE + tail, completion, **columns)


SHORT = sample((21,), (31, 9))  # 8 + 1 + 2 = 11
MIDDLE = sample((22, 23), (32, 33, 9))  # 13
LONG = sample((24, 25), (34, 35, 36, 9), advantage=(1.0, 2.0, 3.0, 4.0))  # 14
SESSION = [SHORT, MIDDLE, LONG]


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives, its trees as sequences."""

    trees: list[Node]
    counts: LengthCounts
    whole: list[TrainSequence]
    cut: list[TrainSequence]


def fitted(max_length: int, policy: OverLong, sequences=SESSION) -> Fitted:
    trees, counts = fit(sequences, SPAN, max_length, policy, session="session 7 of D2")
    found = [sequences_of(tree) for tree in trees]
    whole = found.pop(0) if counts.num_whole else []
    cut = found.pop(0) if counts.num_cut else []
    assert not found
    return Fitted(trees, counts, whole, cut)


def test_lengths_count_prompt_and_completion():
    assert [length(sequence) for sequence in SESSION] == [11, 13, 14]


@pytest.mark.parametrize("policy", OverLong)
def test_what_fits_is_left_alone(policy):
    result = fitted(14, policy)
    assert result.whole == SESSION and result.cut == []
    assert result.counts == LengthCounts(num_whole=3)


def test_drop():
    result = fitted(12, OverLong.DROP)
    assert result.whole == [SHORT] and result.cut == []
    assert result.counts == LengthCounts(num_whole=1, num_dropped=2)


def test_error_names_the_session_and_the_way_out():
    with pytest.raises(ConfigError, match="session 7 of D2: 2 of 3 .* max_length=12 .* 14: .*over_long=cut"):
        fitted(12, OverLong.ERROR)


def test_cut_takes_the_oldest_dialogue_tokens_and_nothing_else():
    result = fitted(12, OverLong.CUT)
    assert result.whole == [SHORT]
    middle, longest = result.cut  # LONG has 2 tokens too many, so both lose the same 2
    assert middle.prompt_token_ids == (1, 2, 13, 14, 15, 16, 22, 23)
    assert longest.prompt_token_ids == (1, 2, 13, 14, 15, 16, 24, 25)
    assert [sequence.completion_token_ids for sequence in result.cut] == [(32, 33, 9), (34, 35, 36, 9)]
    assert longest.values == LONG.values
    assert [length(sequence) for sequence in result.cut] == [11, 12]
    assert result.counts == LengthCounts(num_whole=1, num_cut=2, num_cut_tokens=4)


def test_a_sample_that_would_lose_too_much_of_the_dialogue_is_dropped():
    result = fitted(10, OverLong.CUT)  # of 6 dialogue tokens at most 3; LONG has 4 too many
    assert result.whole == []
    short, middle = result.cut
    assert short.prompt_token_ids == (1, 2, 14, 15, 16, 21)
    assert middle.prompt_token_ids == (1, 2, 14, 15, 16, 22, 23)  # its own 3, not the dropped sample's 4
    assert result.counts == LengthCounts(num_cut=2, num_dropped=1, num_cut_tokens=6)


def test_a_completion_longer_than_all_is_dropped_not_cut():
    answer = sample((21,), tuple(range(40, 60)))
    result = fitted(15, OverLong.CUT, [answer])
    assert result.trees == [] and result.counts == LengthCounts(num_dropped=1)


def test_cut_samples_still_share_what_is_left():
    whole, cut = fitted(12, OverLong.CUT).trees
    assert whole.sequences == [SHORT] and whole.token_ids == SHORT.input_token_ids
    assert cut.token_ids == (1, 2, 13, 14, 15, 16)
    assert cut.num_tokens == 6 + (2 + 2) + (2 + 3)
    assert [whole.id, cut.id] == ["session 7 of D2"] * 2


def test_a_span_that_is_not_the_shared_dialogue_is_refused():
    with pytest.raises(ValueError, match="differ before the end of its dialogue, at token 9"):
        fit([MIDDLE, LONG], range(2, 9), 12, OverLong.CUT, session="s")
    with pytest.raises(ValueError, match="at token 99"):
        fit([LONG], range(2, 99), 12, OverLong.CUT, session="s")


def test_a_senseless_limit_is_refused():
    with pytest.raises(ValueError, match="max_length >= 2"):
        fitted(1, OverLong.CUT)


@pytest.mark.parametrize(
    "prompt, without, span",
    [
        ((1, 2, 7, 7, 8, 4, 5), (1, 2, 4, 5), range(2, 5)),
        ((1, 2, 2, 4), (1, 2, 4), range(2, 3)),  # a dialogue that looks like the head
        ((1, 2, 4, 4), (1, 2, 4), range(3, 4)),  # and one that looks like the tail
        ((7, 8), (), range(0, 2)),
        ((1, 2), (1, 2), range(2, 2)),
    ],
)
def test_dialogue_span(prompt, without, span):
    assert dialogue_span(prompt, without) == span
    assert prompt[: span.start] + prompt[span.stop :] == without


def test_counts_add_up():
    one = LengthCounts(num_whole=1, num_cut=2, num_dropped=3, num_cut_tokens=4)
    assert one + one == LengthCounts(num_whole=2, num_cut=4, num_dropped=6, num_cut_tokens=8)

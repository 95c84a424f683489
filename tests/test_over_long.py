import pytest

from membuilder.errors import ConfigError
from tests.sequences import sequence
from trainer.batching.packing import TrainSequence
from trainer.configs import OverLong
from trainer.data.truncation import Fitted, LengthCounts, dialogue_span, fit, length

HEAD, DIALOGUE = (1, 2), (11, 12, 13, 14, 15, 16)
SPAN = range(2, 8)


def sample(tail: tuple[int, ...], completion: tuple[int, ...], **columns: tuple[float, ...]) -> TrainSequence:
    """A prompt of head, dialogue and `tail`."""
    return sequence(HEAD + DIALOGUE + tail, completion, **columns)


SHORT = sample((21,), (31, 9))  # 8 + 1 + 2 = 11
MIDDLE = sample((22, 23), (32, 33, 9))  # 13
LONG = sample((24, 25), (34, 35, 36, 9), advantage=(1.0, 2.0, 3.0, 4.0))  # 14
SESSION = [SHORT, MIDDLE, LONG]


def fitted(max_length: int, policy: OverLong, sequences=SESSION, **options) -> Fitted:
    return fit(sequences, SPAN, max_length, policy, session="session 7 of D2", **options)


def test_lengths_count_prompt_and_completion():
    assert [length(sequence) for sequence in SESSION] == [11, 13, 14]


@pytest.mark.parametrize("policy", OverLong)
def test_what_fits_is_left_alone(policy):
    result = fitted(14, policy)
    assert result.whole == tuple(SESSION) and result.cut == ()
    assert result.counts == LengthCounts(num_whole=3)


def test_drop():
    result = fitted(12, OverLong.DROP)
    assert result.whole == (SHORT,) and result.cut == ()
    assert result.counts == LengthCounts(num_whole=1, num_dropped=2, num_dropped_tokens=27)


def test_error_names_the_session_and_the_way_out():
    with pytest.raises(ConfigError, match="session 7 of D2: 2 of 3 .* max_length=12 .* 14: .*over_long=cut"):
        fitted(12, OverLong.ERROR)


def test_cut_takes_the_oldest_dialogue_tokens_and_nothing_else():
    result = fitted(12, OverLong.CUT)
    assert result.whole == (SHORT,)
    middle, longest = result.cut  # LONG has 2 tokens too many, so both lose the same 2
    assert middle.prompt_token_ids == (1, 2, 13, 14, 15, 16, 22, 23)
    assert longest.prompt_token_ids == (1, 2, 13, 14, 15, 16, 24, 25)
    assert [sequence.completion_token_ids for sequence in result.cut] == [(32, 33, 9), (34, 35, 36, 9)]
    assert longest.values == LONG.values
    assert [length(sequence) for sequence in result.cut] == [11, 12]
    assert result.counts == LengthCounts(num_whole=1, num_cut=2, num_cut_tokens=4)


def test_a_sample_that_would_lose_too_much_of_the_dialogue_is_dropped():
    result = fitted(11, OverLong.CUT, max_cut_share=0.4)  # of 6 dialogue tokens at most 2; LONG has 3 too many
    assert result.whole == (SHORT,)
    (middle,) = result.cut
    assert middle.prompt_token_ids == (1, 2, 13, 14, 15, 16, 22, 23)  # its own 2, not the dropped sample's 3
    assert result.counts == LengthCounts(num_whole=1, num_cut=1, num_dropped=1, num_cut_tokens=2, num_dropped_tokens=14)


def test_a_completion_longer_than_all_is_dropped_not_cut():
    answer = sample((21,), tuple(range(40, 60)))
    result = fitted(15, OverLong.CUT, [answer], max_cut_share=1.0)
    assert (result.whole, result.cut) == ((), ())
    assert result.counts == LengthCounts(num_dropped=1, num_dropped_tokens=29)
    assert result.trees() == []


def test_cut_samples_still_share_what_is_left():
    whole, cut = fitted(12, OverLong.CUT).trees()
    assert whole.sequence is None and whole.token_ids == SHORT.prompt_token_ids
    assert cut.token_ids == (1, 2, 13, 14, 15, 16)
    assert cut.num_tokens == 6 + (2 + 2) + (2 + 3)
    assert [whole.id, cut.id] == ["session 7 of D2"] * 2


def test_a_span_that_is_not_the_shared_dialogue_is_refused():
    with pytest.raises(ValueError, match="differ before the end of its dialogue, at token 9"):
        fit([MIDDLE, LONG], range(2, 9), 12, OverLong.CUT, session="s")
    with pytest.raises(ValueError, match="at token 99"):
        fit([LONG], range(2, 99), 12, OverLong.CUT, session="s")


@pytest.mark.parametrize("max_length, share", [(1, 0.5), (12, -0.1), (12, 1.1)])
def test_senseless_limits_are_refused(max_length, share):
    with pytest.raises(ValueError, match="max_length >= 2"):
        fitted(max_length, OverLong.CUT, max_cut_share=share)


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
    one = LengthCounts(num_whole=1, num_cut=2, num_dropped=3, num_cut_tokens=4, num_dropped_tokens=5)
    assert LengthCounts.sum([one, one]) == LengthCounts(
        num_whole=2, num_cut=4, num_dropped=6, num_cut_tokens=8, num_dropped_tokens=10
    )
    assert LengthCounts.sum([]) == LengthCounts()

"""What the rules read off a turn: each cue by itself, and what it adds to the score."""

from collections.abc import Sequence

import pytest

from membuilder.schemes.four_agents.cues import Cues, content_words, read, score, words
from membuilder.types import Turn


def cues_of(text: str, before: str | None = None, familiar: Sequence[str] = (), caption: str | None = None) -> Cues:
    turn = Turn(id="D1:2", speaker="Ann", role="user", text=text, caption=caption)
    earlier = None if before is None else Turn(id="D1:1", speaker="Bob", role="assistant", text=before)
    return read(turn, earlier, {"Ann", "Bob"}, familiar)


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("It opens on Friday, two weeks from the 14th.", "num_time", 2),
        ("It costs three coins or 250 notes.", "num_numbers", 2),
        ("We met Zoran near Lake Ohrid, said Bob.", "num_names", 3),  # Zoran, Lake, Ohrid; Bob speaks here
        ("Zoran rows. Lakes calm.", "num_names", 0),  # the first word of a sentence is no evidence of a name
        ("It starts in March.", "num_names", 0),
        ("I just painted the fence and we drove home.", "num_past", 2),
        ("I've finished it, we have never been there.", "num_past", 1),
        ("I always loved tea.", "num_past", 0),
        ("I'm planning a trip and we'll fly.", "num_plans", 2),
        ("She got promoted after the surgery.", "num_life", 2),
        ("I love jazz but hate the flute.", "num_preferences", 2),
        ("First chop the leeks, then stir it every morning.", "num_steps", 5),
        ("My aunt and I sold our hut.", "num_first_person", 3),
        ("You and your friend said you're off.", "num_second_person", 3),
        ("Your support on this journey matters.", "num_platitudes", 3),
        ("Where? With whom? Fine.", "num_questions", 2),
    ],
)
def test_each_cue_is_counted(text, field, expected):
    assert {field: getattr(cues_of(text), field)} == {field: expected}


def test_questions_tell_nothing():
    cues = cues_of("Did you see Zoran on Friday? I slept.")
    assert (cues.statements, cues.num_time, cues.num_names, cues.num_questions) == (" i slept", 0, 0, 1)


def test_curly_apostrophes_and_accents_read_like_plain_ones():
    assert words("I’m at Zoë’s café") == ["i'm", "at", "zoë's", "café"]
    assert cues_of("I’ve finished it.").num_past == 1


def test_content_words_leave_out_function_words_reactions_and_plurals():
    assert content_words(words("Wow, thanks! The kayaks and Ann's glass were at my house")) == {
        "kayak",
        "ann",
        "glass",
        "house",
    }


def test_fresh_words_are_those_the_session_has_not_had():
    assert cues_of("The kayak needs varnish.", familiar={"kayak"}).num_fresh == 2
    assert cues_of("Look!", caption="a red kayak").num_fresh == 2


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("We moved to Oslo.", True),
        ("It was a moving speech.", False),
        ("The exam is postponed.", True),
        ("I started a new job.", True),
        ("I no longer eat fish.", True),
        ("I finally quit.", True),
        ("Never quit, it pays off.", False),
        ("We like our old flat.", False),
    ],
)
def test_change_words(text, changes):
    assert cues_of(text).changes is changes


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        ("", {}, 0.0),
        ("kayak", {}, 0.5),  # 0.5 log2(1 + 1 fresh word)
        ("kayak", {"familiar": {"kayak"}}, 0.0),
        ("kayak varnish paddle", {}, 1.0),  # 0.5 log2(1 + 3)
        ("yesterday", {}, 1.5),  # time 1, fresh word 0.5
        ("of Zoran", {}, 1.5),  # name 1, fresh word 0.5
        ("I went", {}, 0.5),  # past
        ("twelve", {}, 1.0),  # number 0.5, fresh word 0.5
        ("divorced", {}, 1.0),  # life change 0.5, fresh word 0.5
        ("prefer", {}, 0.75),  # preference 0.25, fresh word 0.5
        ("my kayak is", {}, 1.0),  # possession 0.5, fresh word 0.5
        ("I and I", {"before": "Who?"}, 1.0),  # the answer to a question
        ("you", {"before": "Who?"}, -0.25),  # not about the speaker, so no answer; second person
        ("", {"caption": "a kayak"}, 1.0),  # picture 0.5, fresh word 0.5
        ("Where? When?", {}, -0.5),
        ("journey", {}, 0.25),  # fresh word 0.5, platitude -0.25
    ],
)
def test_score_is_the_sum_of_its_cues(text, context, expected):
    assert score(cues_of(text, **context)) == expected


def test_going_on_after_ones_own_question_is_no_answer():
    turn = Turn(id="D1:2", speaker="Ann", role="user", text="I am here.")
    assert not read(turn, Turn(id="D1:1", speaker="Ann", role="user", text="Who?"), {"Ann"}, ()).answers
    assert read(turn, Turn(id="D1:1", speaker="Bob", role="user", text="Who?"), {"Ann"}, ()).answers


def test_more_than_31_fresh_words_add_nothing():
    kayaks = " ".join("kayak" + letter * 2 for letter in "abcdefghijklmnopqrtuvwxyzäëïöüáéíóúàè")
    assert score(cues_of(kayaks)) == 2.5  # 0.5 log2(1 + 31), of 37


def test_long_general_knowledge_scores_less_than_as_long_a_story():
    lecture = "Copper conducts heat well. " * 25
    story = "I sold copper pans. " * 25
    assert cues_of(lecture).lectures and not cues_of(story).lectures
    assert score(cues_of(lecture)) == -2.0  # 0.5 log2(1 + 3 fresh words) - 3
    assert score(cues_of(story)) == 3.0  # copper, pan, sold 1.0; past 2 x 0.5; life event 0.5; change 0.5

"""Long sessions become several of the same date."""

from datetime import datetime

import pytest

from membuilder.building.config import BuildConfig
from membuilder.datasets.windows import in_windows
from membuilder.evaluation.reading import reading_of
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.types import Dialogue, Question, Session, Turn
from trainer.configs import DataConfig
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig


def session_of(num_turns: int, index: int = 0) -> Session:
    name = f"D{index + 1}"
    turns = tuple(Turn(id=f"{name}:{n}", speaker="Ann", role="user", text=f"text {n}") for n in range(1, num_turns + 1))
    return Session(id=name, index=index, timestamp=datetime(2023, 5, 8 + index), turns=turns)


def dialogue_of(*sizes: int, evidence: tuple[str, ...] = ()) -> Dialogue:
    question = Question(id="q", text="What?", answer="x", category="single", evidence=evidence)
    sessions = tuple(session_of(size, index) for index, size in enumerate(sizes))
    return Dialogue(id="d", speakers=("Ann", "Bob"), sessions=sessions, questions=(question,))


@pytest.mark.parametrize(
    ("num_turns", "max_turns", "sizes"),
    [(1, 3, [1]), (3, 3, [3]), (4, 3, [2, 2]), (7, 3, [2, 2, 3]), (14, 3, [2, 3, 3, 3, 3]), (200, 60, [50] * 4)],
)
def test_windows_cover_the_session_in_order(num_turns, max_turns, sizes):
    whole = dialogue_of(num_turns)
    cut = in_windows(whole, max_turns)
    assert [len(session.turns) for session in cut.sessions] == sizes
    assert [turn for session in cut.sessions for turn in session.turns] == list(whole.sessions[0].turns)
    assert {session.timestamp for session in cut.sessions} == {whole.sessions[0].timestamp}


def test_windows_are_sessions_numbered_through_the_dialogue():
    cut = in_windows(dialogue_of(5, 2), 3)
    assert [(session.id, session.index) for session in cut.sessions] == [("D1.1", 0), ("D1.2", 1), ("D2", 2)]


def test_a_question_is_asked_after_the_window_with_its_last_evidence():
    cut = in_windows(dialogue_of(6, 3, evidence=("D1:1", "D1:5")), 3)
    assert [len(asked) for asked in cut.questions_by_session()] == [0, 1, 0]


def test_chunks_of_memalpha_are_read_whole_by_whoever_reads_them():
    talk, long = {"scheme": "four_agents"}, {"scheme": "memalpha"}
    for read, usual in ((talk, 60), (long, None)):
        configs = [RLConfig(**read).data, SFTConfig(out="o", **read).data]
        configs.append(BuildConfig(out="o", model=ModelEndpoint(name="m"), **read))
        assert [each.max_turns for each in (*configs, reading_of(None, read["scheme"]))] == [usual] * 4
    assert in_windows(dialogue_of(70), None) == dialogue_of(70)
    assert RLConfig(data=DataConfig(max_turns=3), **long).data.max_turns == 3


def test_short_sessions_stay_as_they_are():
    assert in_windows(dialogue_of(3, 2), 3) == dialogue_of(3, 2)

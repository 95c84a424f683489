"""Sessions read in windows."""

from datetime import datetime

import pytest

from membuilder.types import AgentUpdate, Failure, FailureKind, Operation, OperationKind, Session, Turn
from membuilder.windows import join, part_of, windows


def session_of(num_turns: int) -> Session:
    turns = tuple(Turn(id=f"D1:{n}", speaker="Ann", role="user", text=f"text {n}") for n in range(1, num_turns + 1))
    return Session(id="D1", index=0, timestamp=datetime(2023, 5, 8), turns=turns)


def add(*numbers: int) -> Operation:
    return Operation(kind=OperationKind.ADD, quote=numbers)


@pytest.mark.parametrize(
    ("num_turns", "max_turns", "sizes"),
    [(1, 3, [1]), (3, 3, [3]), (4, 3, [2, 2]), (7, 3, [2, 2, 3]), (14, 3, [2, 3, 3, 3, 3]), (200, 60, [50] * 4)],
)
def test_windows_cover_the_session_in_order(num_turns, max_turns, sizes):
    session = session_of(num_turns)
    read = windows(session, max_turns)
    assert [len(window.session.turns) for window in read] == sizes
    assert tuple(turn for window in read for turn in window.session.turns) == session.turns
    assert [window.start for window in read] == [sum(sizes[:index]) for index in range(len(sizes))]


def test_join_numbers_turns_of_the_whole_session():
    read = windows(session_of(4), 2)
    joined = join([(read[0], AgentUpdate(operations=(add(2),))), (read[1], AgentUpdate(operations=(add(1), add(2))))])
    assert joined.operations == (add(2), add(3), add(4))


def test_a_failed_window_fails_the_agents_whole_answer():
    read = windows(session_of(4), 2)
    failure = Failure(kind=FailureKind.NOT_JSON, detail="x")
    assert join([(read[0], AgentUpdate(operations=(add(1),))), (read[1], AgentUpdate(failure=failure))]) == AgentUpdate(
        failure=failure
    )


def test_part_of_undoes_join():
    read = windows(session_of(5), 2)
    update = AgentUpdate(operations=(add(1), add(2), add(3), add(5, 4)))
    parts = [part_of(update, window, len(read)) for window in read]
    assert join(list(zip(read, parts, strict=True))) == update


@pytest.mark.parametrize("operation", [Operation(kind=OperationKind.ADD, text="x"), add(2, 3)])
def test_an_operation_of_no_one_window_is_refused(operation):
    read = windows(session_of(4), 2)
    with pytest.raises(ValueError, match="which window"):
        part_of(AgentUpdate(operations=(operation,)), read[0], len(read))
    assert part_of(AgentUpdate(operations=(operation,)), windows(session_of(4), 4)[0], 1).operations == (operation,)

"""Questions put to banks and judged: all at once, or from the first bank on while others are still sampled.

    with asking(scheme, embedder, judge, 10) as step:
        for rollout in rollouts:            # an async judge works on, in a thread of its own
            step.add((0, rollout.number), rollout.bank, questions)
        answers = step.results()            # place -> QAResult

What does not come in time is missing. A place orders the banks: `results` does not depend on the order of `add`.
"""

import inspect
import time
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Question
from reward.alongside import Alongside, WriteAnswers
from reward.judge_calls import DEADLINE, TIMEOUT, LoopThread, called, checked, missing
from reward.judges import BUILT_IN, Judge, JudgeLimits, Verdict
from reward.qa import QAResult, found_for

Place = tuple[int, ...]
Case = tuple[Question, Bank, Retrieval]


@runtime_checkable
class SearchesByWords(Protocol):
    """A scheme may say so: then nothing is embedded before its banks are searched."""

    searches_by_words: bool


class Asking(AbstractContextManager, Protocol):
    """The questions of one step."""

    def add(self, place: Place, bank: Bank, questions: Sequence[Question]) -> None: ...

    def results(self) -> dict[Place, QAResult]: ...


def asking(
    scheme: Scheme,
    embedder: TextEmbedder,
    judge: Judge,
    k: int,
    limits: JudgeLimits = JudgeLimits(),  # noqa: B008  (frozen)
    write_answers: WriteAnswers | None = None,
) -> Asking:
    """Return what asks k entries of each bank for each question; `write_answers` as in reward/alongside.py."""
    if inspect.iscoroutinefunction(judge) or inspect.iscoroutinefunction(getattr(judge, "__call__", None)):  # noqa: B004
        return Alongside(scheme, embedder, judge, k, limits, write_answers)
    return AtTheEnd(scheme, embedder, judge, k, limits)


def answer_banks(
    tasks: Sequence[tuple[Bank, Sequence[Question]]],
    scheme: Scheme,
    embedder: TextEmbedder,
    judge: Judge,
    k: int = 10,
    limits: JudgeLimits = JudgeLimits(),  # noqa: B008  (frozen)
    write_answers: WriteAnswers | None = None,
) -> list[QAResult]:
    """Find k entries of each bank for each of its questions, and judge whether they and the core answer it."""
    with asking(scheme, embedder, judge, k, limits, write_answers) as step:
        for number, (bank, questions) in enumerate(tasks):
            step.add((number,), bank, questions)
        results = step.results()
    return [results[number,] for number in range(len(tasks))]


class AtTheEnd(AbstractContextManager):
    """It asks a plain function once all banks are there: one question after another, in the order of places."""

    def __init__(self, scheme: Scheme, embedder: TextEmbedder, judge: Judge, k: int, limits: JudgeLimits) -> None:
        self._scheme, self._embedder, self._judge, self._k, self._limits = scheme, embedder, judge, k, limits
        self._tasks: dict[Place, tuple[Bank, Sequence[Question]]] = {}

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, place: Place, bank: Bank, questions: Sequence[Question]) -> None:
        self._tasks[place] = (bank, questions)

    def results(self) -> dict[Place, QAResult]:
        places = sorted(self._tasks)
        tasks = [self._tasks[place] for place in places]
        # one call fills the embedder's cache in full batches; bank by bank the new texts would come a few at a time
        if not (isinstance(self._scheme, SearchesByWords) and self._scheme.searches_by_words):
            self._embedder.embed([entry.text for bank, _ in tasks for entry in bank.entries])
            self._embedder.embed([question.text for _, questions in tasks for question in questions])
        retrieved = [found_for(self._scheme, bank, questions, self._embedder, self._k) for bank, questions in tasks]
        cases = [
            (question, bank, retrieval)
            for (bank, questions), retrievals in zip(tasks, retrieved, strict=True)
            for question, retrieval in zip(questions, retrievals, strict=True)
        ]
        is_instant = self._judge in BUILT_IN.values()
        verdicts = (
            [self._judge(*case) for case in cases] if is_instant else judge_in_turn(self._judge, cases, self._limits)
        )
        ends = list(accumulate(map(len, retrieved), initial=0))
        return {
            place: QAResult(retrievals=tuple(retrievals), verdicts=tuple(verdicts[start:end]))
            for place, retrievals, (start, end) in zip(places, retrieved, pairwise(ends), strict=True)
        }


def judge_in_turn(judge: Judge, cases: Sequence[Case], limits: JudgeLimits) -> list[Verdict]:
    """Call a user's plain function for one case after another; one that hangs is left behind with its thread."""
    ends, worker, verdicts = time.monotonic() + limits.step_seconds, LoopThread(), []
    for case in cases:
        left = ends - time.monotonic()
        if left <= 0:
            verdicts.append(missing(DEADLINE, limits))
            continue
        future = worker.submit(called(judge, *case))
        wait([future], timeout=min(left, limits.question_seconds))
        if not future.done():
            worker = LoopThread()
            verdicts.append(missing(TIMEOUT if left > limits.question_seconds else DEADLINE, limits))
            continue
        verdicts.append(checked(judge, case[0], future.result))
    worker.stop()
    return verdicts

"""Synthetic questions: the mix by hand, what is dropped and why, nothing filled in, stopped runs gone on with."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from membuilder import qa
from membuilder.bank.store import reading
from membuilder.errors import ChatError, ChatErrorKind, ConfigError
from membuilder.llm.chat_model import Message
from membuilder.qa import QAOptions, missing_share, write_sample
from membuilder.trajectories.question_plan import Kind, plan
from membuilder.trajectories.questions import Asked, Models, write_questions
from membuilder.trajectories.trajectory import read_trajectory
from tests.fault_server import FaultServer, Request, answering
from tests.scripted import store_first_turn, talk
from tests.test_expert import THREE, make

SINGLE, MULTI, TEMPORAL = Kind
OPTIONS = QAOptions(model="w", check_model="c", closed_book_model=None, qa_per_session=2)


def draft(question: str = "What did Ann adopt?", answer: str = "a cat", kind: str = "single_session", *evidence: str):
    return {"question": question, "answer": answer, "type": kind, "evidence": list(evidence) or ["#1"]}


def written(*drafts: dict) -> str:
    return json.dumps({"questions": list(drafts)})


class Scripted:
    """A `ChatModel` that plays all three parts: it tells by the prompt which one is asked."""

    def __init__(
        self, write: Sequence[str | Exception] | Callable[[str], str], *, told="a cat", guess="a dog", right=("a cat",)
    ):
        self._write, self._told, self._guess, self._right = write, told, guess, right
        self.prompts: list[tuple[str, str]] = []

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str:
        return self.reply(messages)

    def reply(self, messages: Sequence[Message]) -> str:
        prompt, first = messages[-1]["content"], messages[0]["content"]
        if first.startswith("You write questions"):
            return self._reply("write", prompt, self._write(prompt) if callable(self._write) else self._write.pop(0))
        if first.startswith("You answer questions"):
            return self._reply("answer", prompt, self._told)
        if first.startswith("Answer a question about people"):
            return self._reply("guess", prompt, self._guess)
        answer = re.search(r"Answer to grade: (.*)", prompt)[1]
        return self._reply("judge", prompt, json.dumps({"correct": answer in self._right}))

    def _reply(self, part: str, prompt: str, reply: str | Exception) -> str:
        self.prompts.append((part, prompt))
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    with reading(make(tmp_path_factory.mktemp("t") / "d") / "memory.db") as store:
        return [each.step for each in read_trajectory(store).steps]


def ask(step, model: Scripted, wanted: Mapping[Kind, int], before: Sequence[Asked] = (), closed_book: bool = False):
    models = Models(writer=model, checker=model, closed_book=model if closed_book else None)
    return asyncio.run(write_questions(step, ("Ann", "Ben"), wanted, before, models))


def test_the_mix_of_a_dialogue_is_the_published_one():
    plans = plan(num_sessions=20, per_session=5)
    assert all(each.total() == 5 for each in plans)
    assert sum(plans, Counter()) == {SINGLE: 50, MULTI: 30, TEMPORAL: 20}
    assert plans[0][MULTI] == 0  # there is nothing to combine the first session with
    assert plan(2, 5) == [{SINGLE: 3, TEMPORAL: 2}, {SINGLE: 2, MULTI: 3}]


def test_questions_are_about_the_state_after_the_session(steps):
    model = Scripted([written(draft())])
    found = ask(steps[1], model, {SINGLE: 1})
    (part, prompt), *_ = model.prompts
    assert part == "write"
    assert "2 turns\n1 turns" in prompt  # the core after session 1
    # entry m1 is out of date: m2, written in this session, updates it
    assert "e1 (2023-05-15) [2023-05-15] Ann: The cat is called Miso." in prompt and "adopted" not in prompt
    assert "[1] Ann: The cat is called Miso." in prompt
    assert [each.sources for each in found.kept] == [["turn:D2:1"]] and not found.missing and not found.dropped


def test_the_checker_sees_the_named_evidence_and_nothing_else(steps):
    model = Scripted([written(draft())])
    ask(steps[0], model, {SINGLE: 1})
    answered = next(prompt for part, prompt in model.prompts if part == "answer")
    assert "- [2023-05-08] Ann: I adopted a cat." in answered and "Nice." not in answered and "2 turns" not in answered


@pytest.mark.parametrize(
    "bad, reason",
    [
        (draft("?", "x", "single_session", "#7"), "unknown_evidence"),
        (draft("?", "x", "single_session", "e9"), "unknown_evidence"),
        (draft("?", "x", "temporal"), "not_asked_for"),
        (draft("?", "x", "multi_session", "#1"), "not_multi_session"),
        (draft("What  did Ann adopt"), "duplicate"),
    ],
)
def test_a_draft_that_does_not_fit_is_dropped_and_another_asked_for(steps, bad, reason):
    wanted = {SINGLE: 2, MULTI: 1}
    model = Scripted([written(draft(), bad)] + [written()] * 2)
    found = ask(steps[0], model, wanted)
    assert [each.question for each in found.kept] == ["What did Ann adopt?"]
    assert found.dropped == {reason: 1} and found.missing == {SINGLE: 1, MULTI: 1}
    again = [prompt for part, prompt in model.prompts if part == "write"][1]
    assert reason in again and "Write 2 other questions: 1 single_session, 1 multi_session." in again


def test_a_single_session_question_needs_no_earlier_entry_and_a_multi_session_one_does(tmp_path):
    def keep_apart(agent, prompt):
        return store_first_turn(agent, prompt.replace("\ne1 ", "\nx1 "))

    with reading(make(tmp_path / "d", THREE, keep_apart) / "memory.db") as store:
        step = read_trajectory(store).steps[1].step  # shown: e1 of session 0, e2 of session 1
    first = draft("Q one?", "a cat", "single_session", "#1", "e1")
    both, alone = (
        draft("Q two?", "a cat", "multi_session", "#1", "e1"),
        draft("Q three?", "a cat", "multi_session", "e1"),
    )
    found = ask(step, Scripted([written(first, both, alone), written(), written()]), {SINGLE: 1, MULTI: 2})
    assert [each.question for each in found.kept] == ["Q two?"]
    assert found.kept[0].source_turns == ["D2:1", "D1:1"]
    assert found.dropped == {"not_single_session": 1, "not_multi_session": 1}


def test_what_cannot_be_answered_from_its_evidence_is_dropped(steps):
    found = ask(steps[0], Scripted([written(draft())] * 3, told="The memories do not hold it."), {SINGLE: 1})
    assert not found.kept and found.dropped == {"not_answerable": 3} and found.missing == {SINGLE: 1}


def test_what_is_answered_without_memory_is_dropped_if_a_model_is_given_for_that(steps):
    guessed = Scripted([written(draft())] * 3, guess="a cat")
    assert ask(steps[0], guessed, {SINGLE: 1}, closed_book=True).dropped == {"closed_book": 3}
    guess = next(prompt for part, prompt in guessed.prompts if part == "guess")
    assert "What did Ann adopt?" in guess and "I adopted" not in guess
    assert len(ask(steps[0], Scripted([written(draft())]), {SINGLE: 1}, closed_book=True).kept) == 1
    unchecked = Scripted([written(draft())], guess="a cat")
    assert len(ask(steps[0], unchecked, {SINGLE: 1}).kept) == 1
    assert not [prompt for part, prompt in unchecked.prompts if part == "guess"]


def test_an_old_question_is_new_when_its_answer_is(steps):
    before = ask(steps[0], Scripted([written(draft())]), {SINGLE: 1}).kept
    same = ask(steps[2], Scripted([written(draft("So what did Ann adopt?"))] + [written()] * 2), {SINGLE: 1}, before)
    assert same.dropped == {"duplicate": 1}
    other = Scripted([written(draft(answer="a dog"))], told="a dog", right=("a dog",))
    assert len(ask(steps[2], other, {SINGLE: 1}, before).kept) == 1


@pytest.mark.parametrize(
    "reply",
    [
        "Here are some questions!",
        '{"questions": null}',
        '{"questions": [{"question": "Q?", "answer": "", "type": "temporal", "evidence": ["#1"]}]}',
        '{"questions": [{"question": "Q?", "answer": "a", "type": "temporal", "evidence": []}]}',
        '{"questions": [{"question": "Q?", "answer": "a", "type": "other", "evidence": ["#1"]}]}',
        '{"questions": [{"question": "\\ud83d?", "answer": "a", "type": "temporal", "evidence": ["#1"]}]}',
        '{"questions": []} or {"questions": null}',
    ],
)
def test_a_reply_that_is_not_the_json_asked_for_is_asked_for_again_and_counted(steps, reply):
    found = ask(steps[0], Scripted([reply, written(draft())]), {SINGLE: 1})
    assert len(found.kept) == 1 and found.dropped == {"not_json": 1}
    assert ask(steps[0], Scripted([reply] * 3), {SINGLE: 1}).missing == {SINGLE: 1}


def test_a_failed_call_leaves_its_place_empty_and_a_fatal_one_stops(steps):
    too_long = ChatError(ChatErrorKind.TRUNCATED, "too long")
    found = ask(steps[0], Scripted([too_long]), {SINGLE: 1})
    assert found.dropped == {"chat_truncated": 1} and found.missing == {SINGLE: 1} and not found.kept
    for kind in (ChatErrorKind.REFUSED_KEY, ChatErrorKind.TIMEOUT, ChatErrorKind.EXHAUSTED):
        with pytest.raises(ChatError, match="no answer"):
            ask(steps[0], Scripted([ChatError(kind, "no answer")]), {SINGLE: 1})
        with pytest.raises(ChatError, match="no answer"):
            ask(steps[0], Scripted([written(draft())], told=ChatError(kind, "no answer")), {SINGLE: 1})


# A whole trajectory


def two_questions(prompt: str) -> str:
    """What is asked for, each with a number of its own."""
    mix = re.search(r"^Write \d+ (?:other )?questions: (.*?)\.", prompt, re.MULTILINE)[1]
    turn = re.search(r"^\[1\] (.*)$", prompt, re.MULTILINE)[1]
    kinds = [kind for part in mix.split(", ") for count, kind in [part.split(" ")] for _ in range(int(count))]
    evidence = {"multi_session": ["#1", "e1"]}
    return written(
        *(draft(f"{turn} {n}?", f"{turn} {n}", kind, *evidence.get(kind, ["#1"])) for n, kind in enumerate(kinds))
    )


def sample(folder, model, options=OPTIONS) -> dict:
    return asyncio.run(write_sample(folder, options, Models(writer=model, checker=model, closed_book=None)))


def keep_all(agent, prompt):
    return store_first_turn(agent, prompt.replace("\ne1 ", "\nx1 "))


def test_a_line_for_each_session_in_the_published_shape(tmp_path):
    folder = make(tmp_path / "d", THREE, keep_all)
    report = sample(folder, Scripted(two_questions))
    lines = [json.loads(line) for line in (folder / "rl_training_data.jsonl").read_text().splitlines()]
    assert [(line["conversation_id"], line["session_index"]) for line in lines] == [("d", 0), ("d", 1), ("d", 2)]
    assert lines[1]["state_before"]["episodic"] == ["[2023-05-08] Ann: I adopted a cat."]
    assert lines[1]["state_after"]["core_memory"] == "2 turns\n1 turns"
    assert lines[0]["questions"][0] == {
        "question": "Ann: I adopted a cat. 0?", "answer": "Ann: I adopted a cat. 0", "type": "single-session",
        "source": ["turn:D1:1"], "source_turns": ["D1:1"],
    }  # fmt: skip
    assert lines[0]["expert_actions"]["core"] == {"operation": "APPEND", "content": "2 turns"}
    assert report["asked_for"] == {"single_session": 3, "temporal": 1, "multi_session": 2}
    assert report["kept"] == report["asked_for"] and report["missing"] == {} and missing_share([report]) == 0
    assert sorted(path.name for path in folder.glob("*rl_training*")) == ["rl_training_data.jsonl"]


def test_a_stopped_run_goes_on_behind_its_last_whole_line(tmp_path):
    whole = make(tmp_path / "whole", THREE, keep_all)
    sample(whole, Scripted(two_questions))
    folder, asked = make(tmp_path / "d", THREE, keep_all), []

    def stops(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 3:
            raise ChatError(ChatErrorKind.UNREACHABLE, "gone")
        return two_questions(prompt)

    with pytest.raises(ChatError):
        sample(folder, Scripted(stops))
    assert not (folder / "rl_training_data.jsonl").exists()
    unfinished = folder / "rl_training_data.jsonl.unfinished"
    with unfinished.open("a") as file:
        file.write('{"conversation_id": "d", "sess')  # a kill in the middle of a line
    with pytest.raises(ConfigError, match="was begun with"):
        sample(
            folder, Scripted([]), QAOptions(model="other", check_model="c", closed_book_model=None, qa_per_session=2)
        )
    model = Scripted(two_questions)
    sample(folder, model)
    assert len([part for part, _ in model.prompts if part == "write"]) == 1
    assert (folder / "rl_training_data.jsonl").read_text() == (whole / "rl_training_data.jsonl").read_text()
    assert sample(folder, Scripted([]))["kept"]  # done: nobody is asked
    with pytest.raises(ConfigError, match="was begun with"):
        sample(
            folder, Scripted([]), QAOptions(model="other", check_model="c", closed_book_model=None, qa_per_session=2)
        )


def test_a_session_without_good_questions_has_none_and_says_so(tmp_path):
    folder = make(tmp_path / "d", talk(["I adopted a cat."]))
    report = sample(folder, Scripted([written(draft("A?"), draft("B?"))] * 3, told="no idea"))
    (line,) = map(json.loads, (folder / "rl_training_data.jsonl").read_text().splitlines())
    assert line["questions"] == [] and line["missing"] == {"single_session": 1, "temporal": 1}
    assert report["sessions_without_questions"] == 1 and missing_share([report]) == 1
    assert report["dropped"] == {"not_answerable": 3, "not_asked_for": 3}


def test_the_command_asks_three_models_of_a_real_server(tmp_path, capsys):
    def served(request: Request) -> str:
        messages, name = request.body["messages"], request.body["model"]
        if messages[0]["content"].startswith("Answer with this JSON"):
            return '{"ready": true}'
        model = Scripted(two_questions if name == "writer" else [])
        reply = model.reply(messages)
        parts = {"writer": "write", "closed": "guess"}
        assert model.prompts[0][0] == parts.get(name, model.prompts[0][0])
        return reply

    make(tmp_path / "set" / "d", THREE, keep_all)
    flags = [
        "--trajectories-dir",
        str(tmp_path),
        "--model",
        "writer",
        "--check-model",
        "checker",
        "--qa-per-session",
        "2",
    ]
    with FaultServer(answering(served)) as server:
        flags += ["--closed-book-model", "closed", "--provider", "vllm", "--base-url", server.base_url]
        assert qa.main(flags) == 0
    (line,) = [json.loads(each) for each in (tmp_path / "qa_usage.jsonl").read_text().splitlines()]
    usage = line["usage"]
    assert usage["questioner"]["calls"] == 1 + 3  # the check, a reply for each session
    assert usage["judge"]["calls"] == 1 + 6 * 3  # the check; for each question an answer and two verdicts
    assert usage["answerer"]["calls"] == 1 + 6
    assert (tmp_path / "set" / "d" / "rl_training_data.jsonl").is_file()


def test_too_many_missing_questions_end_the_command_with_an_error(tmp_path, capsys):
    make(tmp_path / "d", talk(["I adopted a cat."]))
    with FaultServer(answering(lambda _: '{"ready": true}')) as server:  # no questions from this one
        flags = [
            "--trajectories-dir",
            str(tmp_path),
            "--model",
            "m",
            "--provider",
            "vllm",
            "--base-url",
            server.base_url,
        ]
        assert qa.main(flags) == 1
        said = capsys.readouterr().err
        assert "100.0% of the questions" in said and "--max-missing 0.1" in said
        assert "rl_training_data.jsonl are whole and usable, 1 with fewer questions than asked for" in said
        assert qa.main([*flags, "--max-missing", "1"]) == 0
    used = [json.loads(line) for line in (tmp_path / "qa_usage.jsonl").read_text().splitlines()]
    assert [line["whole"] for line in used] == [False, True]  # as the exit status says

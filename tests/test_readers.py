"""Readers in front of the metric of a source: offline, a model's and a user's own."""

import random
import time
from datetime import datetime

import pytest

from membuilder.bank.retrieve import Retrieval
from membuilder.llm.answer_and_judge import SOURCE_PROMPTS, prompt_hashes
from membuilder.types import Bank, Entry, Question
from reward.asking import answer_banks
from reward.judge_calls import verdict_of
from reward.judges import NO_GOLD, NO_GRADER, NO_REPLY, Verdict, load_judge
from reward.llm_judge import judge_prompts
from reward.readers import excerpt, nearest, offline
from reward.score import Grading, RewardConfig
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answering, echo
from tests.patience import LINEAR
from tests.test_reward_llm import SCHEME, bank_of, config_of, judged

DAY = datetime(2024, 1, 1)


def question(text: str, gold: str | None = "Oslo", category: str = "squad", **changed) -> Question:
    return Question(id="q", text=text, answer=gold, category=category, evidence=(), **changed)


def found(*texts: str) -> Retrieval:
    entries = tuple(
        Entry(id=f"m{n}", agent="semantic", text=text, session=0, timestamp=DAY, source_turns=())
        for n, text in enumerate(texts)
    )
    return Retrieval(entries=entries, scores=(1.0,) * len(entries))


# excerpt


def test_the_excerpt_is_the_short_line_or_the_sentence_that_fits_best():
    long = "Bob likes tea. " * 12 + "Ann moved to Oslo in May. It rained a lot."
    asked = question("Where did Ann move?")
    assert excerpt(asked, Bank(), found("Bob moved", long)).text == "Ann moved to Oslo in May."
    reply = excerpt(asked, Bank(), found("Bob moved", "Ann has a cat. Ann moved to Oslo. It rained."))
    assert (reply.text, reply.entries) == ("Ann has a cat. Ann moved to Oslo. It rained.", ("m1",))
    core = excerpt(asked, Bank(core="Bob is old. Ann moved to Rome."), found("Bob moved"))
    assert (core.text, core.entries) == ("Ann moved to Rome.", ())


def test_lines_that_were_stored_as_one_entry_are_replied_one_by_one():
    both = "[2024-01-01] text: Ann lives in Rome.\n[2024-01-02] text: Ann lives in Oslo."
    reply = excerpt(question("Where does Ann live?"), Bank(), found("rain", both))
    assert (reply.text, reply.entries) == ("[2024-01-01] text: Ann lives in Rome.", ("m1",))


def test_of_two_that_fit_alike_the_first_is_taken_so_that_a_stale_entry_answers():
    asked = question("Where does Ann live?")
    assert excerpt(asked, Bank(), found("Ann lives in Rome", "Ann lives in Oslo")).text == "Ann lives in Rome"


def test_a_memory_without_a_word_in_common_says_nothing():
    for memory in ((), ("rain and snow",)):
        assert excerpt(question("Where does Ann live?"), Bank(), found(*memory)).text == ""


# nearest


@pytest.mark.parametrize(
    "memory, text, label",
    [
        (["Sentence: book a flight\nLabel: 3", "Sentence: play a song\nLabel: 4"], "Sentence: a flight to Rome", "3"),
        (["Sample: wake me at 5:30\nLabels: 7\n\nSample: what's on\nLabels: 8"], "Sentence: wake me up", "7"),
        (["Sample: wake me at 5:30\nLabels: 7\n\nSample: what's on\nLabels: 8"], "Sentence: what's on tv", "8"),
        (["book a flight -> 12", "play a song -> 13."], "play it", "13"),
        (["flights: 12\nsongs, music: 13"], "music please", "13"),
        (["Label 12: flights, planes\nLabel 13: songs, music"], "music please", "13"),
        (["3: flights\n4: songs"], "songs", "4"),
    ],
)
def test_nearest_reads_examples_however_they_are_written(memory, text, label):
    assert nearest(question(text, category="icl_nlu"), Bank(), found(*memory)).text == f"\\boxed{{{label}}}"
    core = nearest(question(text, category="icl_nlu"), Bank(core="\n".join(memory)), found())
    assert core.text == f"\\boxed{{{label}}}" and core.entries == ()


def test_nearest_says_nothing_without_an_example_however_long_the_text():
    started = time.monotonic()
    dated = "[2024-01-31] User: a label"
    for text in (dated, "no label here", "Label: 3", ": " * 20_000, "Label " * 20_000, "a" * 100_000):
        assert nearest(question("label a"), Bank(core=text), found()).text == ""
    assert time.monotonic() - started < LINEAR


def test_offline_is_the_reader_that_the_source_needs():
    memory = found("Ann's cat is Miso: 3")
    assert offline(question("cat?", category="icl_nlu"), Bank(), memory).text == "\\boxed{3}"
    assert offline(question("cat?"), Bank(), memory).text == "Ann's cat is Miso: 3"


# as judges


def test_the_sources_metric_scores_the_reply_and_the_verdict_names_what_it_rests_on():
    judge = load_judge("offline")
    right = judge(question("Where does Ann live?"), Bank(), found("rain", "Ann lives in Oslo"))
    assert (right.correct, right.rests_on) == (1.0, ("m1",))
    assert judge(question("Where does Ann live?", "Rome"), Bank(), found("Ann lives in Oslo")).correct == 0
    label = judge(question("book a flight", "3", "icl_nlu"), Bank(), found("a flight -> 3"))
    assert label.correct == 1


def test_a_memory_that_says_nothing_is_wrong_and_what_nobody_can_score_is_missing():
    judge = load_judge("excerpt")
    assert judge(question("Where does Ann live?"), Bank(), found()).correct == 0
    assert judge(question("Where?", None), Bank(), found()).cause == NO_GOLD
    assert judge(question("Where?", " "), Bank(), found("where")).cause == NO_GOLD
    assert judge(question("Where?", category="lme_train"), Bank(), found("where")).cause == NO_GRADER


def test_a_policy_gains_nothing_by_writing_error_into_its_memory():
    assert load_judge("excerpt")(question("cat?"), Bank(), found("Error: cat")).correct == 0


@pytest.mark.parametrize(
    "reply, correct, cause",
    [("It is Oslo.", 1.0, ""), ("Rome", 0.0, ""), ("", None, NO_REPLY), (" \n", None, NO_REPLY)]
    + [("Error: 503 Service Unavailable", None, NO_REPLY)],
)
def test_a_users_function_may_reply_in_words(reply, correct, cause):
    async def judge(asked, bank, retrieval):
        return reply

    (plain,) = answer_banks([(Bank(), [question("Where?")])], SCHEME, HashEmbedder(), lambda *case: reply)
    (alongside,) = answer_banks([(Bank(), [question("Where?")])], SCHEME, HashEmbedder(), judge)
    for (verdict,) in (plain.verdicts, alongside.verdicts):
        assert (verdict.correct, verdict.cause) == (correct, cause)
    assert verdict_of(judge, question("Where?"), Verdict(correct=0.5, reason="")).correct == 0.5


def test_of_0_questions_nothing_is_asked():
    (result,) = answer_banks([(Bank(), [])], SCHEME, HashEmbedder(), load_judge("offline"))
    assert result.accuracy is None and result.verdicts == ()


class ByWords:
    searches_by_words = True

    def find(self, bank, questions, embedder, k):
        return [Retrieval(entries=bank.entries[:k], scores=(1.0,) * len(bank.entries[:k])) for _ in questions]


def test_a_scheme_that_searches_by_words_has_nothing_embedded():
    embedder = HashEmbedder()
    answer_banks([(bank_of("Ann lives in Oslo"), [question("Ann?")])], ByWords(), embedder, load_judge("excerpt"))
    assert embedder.embedded == []


def test_50000_entries_are_read_in_time():
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randint(0, 3000)}" for _ in range(4)) for _ in range(50_000)]
    started = time.monotonic()
    reply = excerpt(question("where is the needle?"), Bank(), found(*texts, "the needle is here"))
    assert reply.text == "the needle is here" and time.monotonic() - started < LINEAR


# a model


def test_a_model_answers_in_the_form_of_the_source_and_its_metric_scores_that():
    def reply(request) -> str:
        return "The label is \\boxed{3}." if "as \\boxed{number}" in echo(request) else "She lives in oslo."

    asked = [question("book a flight", "3", "icl_nlu"), question("Where?"), question("Where?", "Rome")]
    with FaultServer(answering(reply)) as server:
        config = config_of(server, grading=Grading.SOURCE)
        (result,) = judged(config, (bank_of("a note"), asked))
        assert [each.correct for each in result.verdicts] == [1, 1, 0] and len(server.requests) == 3
        assert all(request.body["temperature"] == 0 for request in server.requests)


def test_the_grader_is_asked_only_where_the_source_is_graded_by_rubric():
    def reply(request) -> str:
        return '{"correct": true}' if "response_format" in request.body else "four days"

    asked = question("How many days?", "five days", "temporal-reasoning")
    with FaultServer(answering(reply)) as server:
        config = config_of(server, grading=Grading.SOURCE)
        (result,) = judged(config, (bank_of("a note"), [asked]))
        assert result.accuracy == 1 and "off by one" in echo(server.requests[1])
        without = RewardConfig(judge="llm", answerer=config.answerer, grading=Grading.SOURCE)
        (result,) = judged(without, (bank_of("a note"), [asked, question("Where?", "days")]))
        assert result.missing == {NO_GRADER: 1} and result.accuracy == 1


def test_a_reader_that_answers_nothing_or_an_error_is_missing():
    with FaultServer(answering(lambda request: "Error: out of memory")) as server:
        (result,) = judged(config_of(server, grading=Grading.SOURCE), (Bank(), [question("Where?")]))
    assert result.missing == {NO_REPLY: 1} and result.accuracy is None


def test_the_hashes_of_all_prompts_that_may_be_asked_are_told():
    with FaultServer() as server:
        told = judge_prompts(config_of(server, grading=Grading.SOURCE))
        assert {name: prompt["sha256"] for name, prompt in told.items()} == prompt_hashes(SOURCE_PROMPTS)
        assert "rubric_time" in judge_prompts(config_of(server, grading=Grading.RUBRIC))

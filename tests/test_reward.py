import asyncio
import itertools
import threading
import time
from dataclasses import replace
from datetime import datetime

import pytest

from membuilder.bank.ranking import SearchMethod
from membuilder.bank.retrieve import Retrieval
from membuilder.errors import ConfigError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import (
    ENTRY_AGENTS,
    Agent,
    Bank,
    CoreQuote,
    Dialogue,
    Entry,
    Failure,
    FailureKind,
    Question,
    Session,
    Turn,
)
from reward import alongside
from reward.asking import answer_banks, asking
from reward.four_agents import attribution_weights, score
from reward.judges import JudgeLimits, Verdict, coverage, evidence, load_judge
from reward.length import LengthConfig, LengthScope, expert_lengths, length_penalty
from reward.qa import QAResult
from reward.rollouts import choose_questions
from reward.score import RewardConfig, RewardStatus, RoleOutput
from tests.fakes import HashEmbedder
from tests.memalpha_chunks import bank_of, writer
from tests.patience import SOON

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
DAY = datetime(2023, 5, 8)
BROKEN = Failure(kind=FailureKind.NOT_JSON, detail="no JSON")


def entry(number: int, text: str, agent: Agent = EPISODIC, session: int = 0, sources=()) -> Entry:
    return Entry(id=f"m{number}", agent=agent, text=text, session=session, timestamp=DAY, source_turns=sources)


def question(text: str = "cat?", answer: str | None = "Miso", evidence=("D1:1",), answerable: bool = True) -> Question:
    return Question(id="q", text=text, answer=answer, category="single", evidence=evidence, answerable=answerable)


def found(*entries: Entry) -> Retrieval:
    return Retrieval(entries=entries, scores=(1.0,) * len(entries))


def qa_of(*correct: float | None, retrieved=()) -> QAResult:
    """Verdicts as given; the agents in `retrieved` have one entry each retrieved for the first question."""
    entries = tuple(entry(i, "text", agent) for i, agent in enumerate(retrieved))
    retrievals = tuple(found(*entries) if i == 0 else found() for i in range(len(correct)))
    return QAResult(retrievals=retrievals, verdicts=tuple(Verdict(correct=c, reason="") for c in correct))


def outputs_of(**changed: RoleOutput) -> dict[Agent, RoleOutput]:
    fine = RoleOutput(failure=None, model_tokens=100, expert_tokens=100)
    return {agent: changed.get(agent.value, fine) for agent in Agent}


# length


@pytest.mark.parametrize("tokens, penalty", [(0, 0), (150, 0), (200, 0.2), (275, 0.5), (400, 1), (9000, 1)])
def test_core_penalty(tokens, penalty):
    assert length_penalty(CORE, tokens, 0, LengthConfig()) == pytest.approx(penalty)


@pytest.mark.parametrize(
    "model, expert, penalty",
    [
        (1000, 1000, 0),
        (1300, 1000, 0),
        (500, 1000, 0),
        (1650, 1000, 0.5),  # (1.65 - 1.3) / 0.7
        (2000, 1000, 1),
        (5000, 1000, 1),
        (350, 1000, 0.5),  # (0.5 - 0.35) / 0.3
        (200, 1000, 1),
        (0, 1000, 1),
        (199, 100, 0),  # ratio 1.99 within the tolerance
        (299, 100, 0),
        (300, 100, 1),  # the tolerance is exclusive
        (0, 199, 0),
        (0, 0, 0),
        (199, 0, 0),
        (200, 0, 1),
    ],
)
def test_entry_penalty(model, expert, penalty):
    assert length_penalty(SEMANTIC, model, expert, LengthConfig()) == pytest.approx(penalty)


@pytest.mark.parametrize("model, expert, penalty", [(4000, 0, 0), (4000, 1, 1), (0, 1000, 1), (1650, 1000, 0.5)])
def test_where_the_expert_wrote_nothing_the_published_penalty_is_zero(model, expert, penalty):
    config = LengthConfig(free_without_expert=True)
    assert length_penalty(SEMANTIC, model, expert, config) == pytest.approx(penalty)
    assert length_penalty(CORE, 9000, 0, config) == 1, "the core is held to bounds of its own"


@pytest.mark.parametrize("tokens", [0, 40, 400, 4000])
@pytest.mark.parametrize("agent", ENTRY_AGENTS)
def test_an_output_identical_to_the_experts_costs_nothing(agent, tokens):
    assert length_penalty(agent, tokens, tokens, LengthConfig()) == 0


def test_the_core_is_held_to_bounds_and_entries_to_the_expert():
    config = LengthConfig(core_start_tokens=10, core_maximum_tokens=20, tolerance_tokens=5, ratio_highest=1.8)
    assert length_penalty(CORE, 15, 15, config) == 0.5
    assert length_penalty(SEMANTIC, 15, 10, config) == pytest.approx(0.4)  # (1.5 - 1.3) / 0.5


@pytest.mark.parametrize(
    "wrong", [{"core_start_tokens": 400}, {"ratio_lower": 0.1}, {"ratio_highest": 1.3}, {"tolerance_tokens": -1}]
)
def test_length_config_refuses_bounds_out_of_order(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LengthConfig(**wrong)


# judges


def test_evidence_needs_every_turn():
    asked = question(evidence=("D1:1", "D2:4"))
    first, second = entry(1, "one", sources=("D1:1", "D1:2")), entry(2, "two", sources=("D2:4",))
    quoted = Bank(core="two", core_quotes=(CoreQuote(turn_id="D2:4", text="two"),))
    whole = evidence(asked, Bank(), found(first, entry(3, "three"), second))
    assert (whole.correct, whole.rests_on) == (1, ("m1", "m2"))
    assert evidence(asked, Bank(), found(first)) == Verdict(correct=0.0, reason="not found: D2:4")
    assert evidence(asked, quoted, found(first)).correct == 1
    # in the bank, but not retrieved
    assert evidence(asked, Bank(entries=(first, second)), found(first)).correct == 0


def test_evidence_cannot_judge_without_evidence():
    assert evidence(question(evidence=()), Bank(), found()).correct is None
    assert evidence(question(answerable=False), Bank(), found()).correct is None


def test_coverage_counts_content_words_of_the_answer():
    asked = question(answer="In May she adopted the cat Miso")  # may, adopted, cat, miso
    retrieved = found(entry(1, "Ann adopted MISO; catch"))
    assert coverage(asked, Bank(), retrieved).correct == pytest.approx(0.5)
    assert coverage(asked, Bank(), retrieved).reason == "not found: cat, may"
    assert coverage(asked, Bank(core="a cat since May"), retrieved).correct == 1
    assert coverage(asked, Bank(), found()).correct == 0


def test_coverage_cannot_judge_without_a_gold_answer():
    assert coverage(question(answer=None), Bank(), found()).correct is None
    assert coverage(question(answer="it is the"), Bank(), found()).correct is None
    assert coverage(question(answerable=False), Bank(), found()).correct is None
    assert coverage(question(answer="No"), Bank(core="no"), found()).correct == 1


def test_load_judge_by_name_and_from_a_users_file(tmp_path):
    assert load_judge("evidence") is evidence
    assert load_judge("coverage") is coverage
    path = tmp_path / "mine.py"
    path.write_text(
        "from reward.judges import Verdict\n"
        "def half(question, bank, retrieval):\n    return Verdict(correct=0.5, reason=question.text)\n"
    )
    assert load_judge(f"{path}:half")(question("why?"), Bank(), found()) == Verdict(correct=0.5, reason="why?")


@pytest.mark.parametrize(
    "name, problem", [("evidnce", "none of evidence, coverage"), ("no/file.py:judge", "no/file.py"), ("", "none of")]
)
def test_an_unknown_judge_is_a_config_error(name, problem):
    with pytest.raises(ConfigError, match=problem):
        load_judge(name)


def test_a_file_without_the_function_is_a_config_error(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="judge"):
        load_judge(f"{tmp_path / 'mine.py'}:judge")


@pytest.mark.parametrize("correct", [-0.1, 1.1, float("nan")])
def test_a_verdict_lies_between_0_and_1(correct):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Verdict(correct=correct, reason="")


# question answering


SCHEME = FourAgents(PromptConfig())


def answered(bank, questions, embedder, judge, k=10, scheme=SCHEME) -> QAResult:
    """What one bank answers."""
    return answer_banks([(bank, questions)], scheme, embedder, judge, k)[0]


def test_memories_of_earlier_sessions_answer_and_count():
    bank = Bank(
        entries=(
            entry(1, "cat miso", EPISODIC, session=0, sources=("D1:1",)),
            entry(2, "bike", SEMANTIC, session=5, sources=("D6:1",)),
        )
    )
    result = answered(bank, [question("cat miso")], HashEmbedder(), evidence, k=1)
    assert result.accuracy == 1
    assert result.retrieval_counts == {EPISODIC: 1}


def test_accuracy_and_counts_over_all_questions():
    bank = Bank(entries=(entry(1, "cat", EPISODIC, sources=("D1:1",)), entry(2, "bike", SEMANTIC, sources=("D1:2",))))
    questions = [
        question("cat", evidence=("D1:1",)),
        question("bike", evidence=("D1:9",)),
        question("bike", evidence=()),
    ]
    result = answered(bank, questions, HashEmbedder(), evidence, k=1)
    assert [verdict.correct for verdict in result.verdicts] == [1, 0, None]
    assert result.accuracy == 0.5  # the third could not be judged: it is missing, not wrong
    assert result.num_missing == 1
    assert result.retrieval_counts == {EPISODIC: 1, SEMANTIC: 2}


def test_no_question_and_no_verdict_leave_the_accuracy_missing():
    assert answered(Bank(), [], HashEmbedder(), evidence).accuracy is None
    assert answered(Bank(), [question(evidence=())], HashEmbedder(), evidence).accuracy is None


async def agrees(asked, bank, retrieval):
    return Verdict(correct=1.0, reason="")


@pytest.mark.parametrize("judge", [evidence, agrees])
@pytest.mark.parametrize("scheme", [SCHEME, *(writer(retrieval=method) for method in SearchMethod)])
def test_a_bank_of_which_nothing_is_asked_is_not_searched(scheme, judge):
    bank = bank_of(("semantic", "Ann has a cat."))
    none, one = answer_banks([(bank, []), (bank, [question("Who has a cat?")])], scheme, HashEmbedder(), judge)
    assert (none.retrievals, none.verdicts, none.accuracy) == ((), (), None) and len(one.verdicts) == 1


def test_each_question_is_embedded_once():
    embedder = HashEmbedder()
    answered(Bank(entries=(entry(1, "cat"),)), [question("where?"), question("when?")], embedder, evidence)
    assert sorted(embedder.embedded) == ["cat", "when?", "where?"]


def test_superseded_entries_can_be_left_out():
    old = entry(1, "cat miso", sources=("D1:1",))
    bank = Bank(entries=(old, replace(entry(2, "dog"), supersedes=("m1",))))
    asked = [question("cat miso")]
    assert answered(bank, asked, HashEmbedder(), evidence).accuracy == 1
    assert (
        answered(
            bank, asked, HashEmbedder(), evidence, scheme=FourAgents(PromptConfig(include_superseded=False))
        ).accuracy
        == 0
    )


@pytest.mark.parametrize("error", [TimeoutError("80 s"), ConnectionRefusedError("port 8000")])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_unreachable_judge_is_missing_and_says_why(error, is_async):
    def judge(asked, bank, retrieval):
        if asked.text == "cat":
            raise error
        return Verdict(correct=0.25, reason="")

    async def async_judge(asked, bank, retrieval):
        return judge(asked, bank, retrieval)

    chosen = async_judge if is_async else judge
    result = answered(Bank(), [question("cat"), question("dog")], HashEmbedder(), chosen)
    assert [verdict.correct for verdict in result.verdicts] == [None, 0.25]
    assert result.verdicts[0].reason == f"judge unreachable: {type(error).__name__}: {error}"
    assert result.accuracy == 0.25


def hanging(blocks: bool, is_async: bool):
    """Two of four questions are not judged: by a judge that never comes back, or only waits forever."""
    release = threading.Event()

    def judge(asked, bank, retrieval):
        if asked.text.startswith("slow"):
            release.wait(20)
        return Verdict(correct=0.5, reason="")

    async def async_judge(asked, bank, retrieval):
        if asked.text.startswith("slow"):
            await asyncio.sleep(0.1 if blocks else 60)
        return judge(asked, bank, retrieval)

    return release, async_judge if is_async else judge


@pytest.mark.parametrize("is_async", [False, True])
def test_a_judge_that_hangs_is_missing_in_time_and_the_others_are_judged(is_async):
    release, judge = hanging(blocks=not is_async, is_async=is_async)
    limits, began = JudgeLimits(question_seconds=0.3, step_seconds=60), time.monotonic()
    asked = [question("slow 1"), question("cat"), question("slow 2"), question("dog")]
    (result,) = answer_banks([(Bank(), asked)], SCHEME, HashEmbedder(), judge, 10, limits)
    release.set()
    assert time.monotonic() - began < SOON
    assert [verdict.correct for verdict in result.verdicts] == [None, 0.5, None, 0.5]
    assert result.missing == {"question_timeout": 2}
    assert result.verdicts[0].reason == "no verdict within reward.question_timeout_seconds=0.3"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_step_does_not_wait_beyond_its_deadline_also_for_a_judge_that_blocks_its_event_loop(is_async, monkeypatch):
    monkeypatch.setattr(alongside, "CLOSING_SECONDS", 0.2)
    release, judge = hanging(blocks=True, is_async=is_async)
    limits, began = JudgeLimits(question_seconds=60, step_seconds=0.4), time.monotonic()
    tasks = [(Bank(), [question("cat")]), (Bank(), [question("slow")]), (Bank(), [question("dog")])]
    results = answer_banks(tasks, SCHEME, HashEmbedder(), judge, 10, limits)
    release.set()
    assert time.monotonic() - began < SOON
    # the blocked loop had judged the third already, the plain function is called for it after the second
    assert [result.accuracy for result in results] == [0.5, None, 0.5 if is_async else None]
    assert results[1].missing == {"step_deadline": 1}


def test_a_plain_judge_is_called_for_one_question_after_another_in_one_thread():
    threads, running, most = set(), [], []

    def judge(asked, bank, retrieval):
        running.append(asked)
        threads.add(threading.current_thread().name)
        most.append(len(running))
        running.pop()
        return Verdict(correct=1.0, reason="")

    answered(Bank(), [question(str(n)) for n in range(20)], HashEmbedder(), judge)
    assert set(most) == {1} and len(threads) == 1


def test_what_was_judged_does_not_depend_on_the_order_in_which_banks_came():
    """Embedded in the order of places, too: vectors may depend on what is embedded together."""
    banks = {
        (task, number): Bank(entries=(entry(1, f"cat {task} {number}"),)) for task in range(2) for number in range(3)
    }
    found = []
    for places in (sorted(banks), sorted(banks, reverse=True)):
        embedder = HashEmbedder()
        with asking(SCHEME, embedder, evidence, 10) as step:
            for place in places:
                step.add(place, banks[place], [question(f"cat {place[0]}")])
            found.append((step.results(), embedder.embedded))
    assert found[0] == found[1] and len(found[0][0]) == 6


def test_a_faulty_judge_ends_the_run():
    def raises(asked, bank, retrieval):
        raise KeyError("grade")

    with pytest.raises(KeyError, match="grade"):
        answered(Bank(), [question()], HashEmbedder(), raises)
    says = r"reward.judge: <lambda> \(.*test_reward.py, line \d+\) returns True; expected reward.judges.Verdict"
    with pytest.raises(ConfigError, match=says):
        answered(Bank(), [question()], HashEmbedder(), lambda *case: True)

    async def async_raises(asked, bank, retrieval):
        raise KeyError("grade")

    async def no_verdict(asked, bank, retrieval):
        return 1.0

    with pytest.raises(KeyError, match="grade"):
        answered(Bank(), [question()], HashEmbedder(), async_raises)
    says = r"reward.judge: no_verdict \(.*test_reward.py, line \d+\) returns 1.0; expected reward.judges.Verdict"
    with pytest.raises(ConfigError, match=says):
        answered(Bank(), [question()], HashEmbedder(), no_verdict)


def test_an_async_judge_sees_all_banks_questions_together_and_answers_stay_in_place():
    num_questions = 5
    everyone_asked = asyncio.Event()
    waiting = []

    async def judge(asked, bank, retrieval):
        waiting.append(asked)
        if len(waiting) == num_questions:
            everyone_asked.set()
        await asyncio.wait_for(everyone_asked.wait(), timeout=5)
        return Verdict(correct=0.5 if bank.core == "b" else 1.0, reason=asked.text)

    tasks = [
        (Bank(core="a"), [question("1"), question("2")]),
        (Bank(core="-"), []),
        (Bank(core="b"), [question("3"), question("4"), question("5")]),
    ]
    results = answer_banks(tasks, SCHEME, HashEmbedder(), judge)
    assert [[verdict.reason for verdict in result.verdicts] for result in results] == [["1", "2"], [], ["3", "4", "5"]]
    assert [result.accuracy for result in results] == [1.0, None, 0.5]


# attribution


@pytest.mark.parametrize(
    "counts, boosted",
    [
        ((12, 30, 8), SEMANTIC),
        ((5, 0, 0), EPISODIC),
        ((1, 2, 3), PROCEDURAL),
        ((9, 9, 1), None),
        ((0, 4, 4), None),
        ((0, 0, 0), None),
    ],
)
def test_only_a_clear_leader_is_boosted(counts, boosted):
    weights = attribution_weights(dict(zip(ENTRY_AGENTS, counts, strict=True)), alpha=4.0)
    assert weights == {agent: 4.0 if agent is boosted else 1.0 for agent in Agent}


def test_the_order_of_agents_never_matters_and_the_core_is_never_boosted():
    counts = {CORE: 99, EPISODIC: 1, SEMANTIC: 7, PROCEDURAL: 3}
    expected = {CORE: 1.0, EPISODIC: 1.0, SEMANTIC: 2.5, PROCEDURAL: 1.0}
    for order in itertools.permutations(counts):
        assert attribution_weights({agent: counts[agent] for agent in order}, alpha=2.5) == expected


# score


def test_score_worked_by_hand():
    outputs = outputs_of(
        core=RoleOutput(failure=None, model_tokens=275, expert_tokens=50),  # halfway from 150 to 400
        semantic=RoleOutput(failure=None, model_tokens=1650, expert_tokens=1000),  # (1.65 - 1.3) / 0.7
        procedural=RoleOutput(failure=BROKEN, model_tokens=0, expert_tokens=500),
    )
    result = score(outputs, qa_of(1, 0, 1, 1, 1, retrieved=(EPISODIC, SEMANTIC, SEMANTIC)), RewardConfig())
    assert result.qa == 0.8
    assert result.parts["format"] == {CORE: 1.0, EPISODIC: 1.0, SEMANTIC: 1.0, PROCEDURAL: 0.0}
    assert result.parts["length_penalty"] == pytest.approx({CORE: 0.5, EPISODIC: 0.0, SEMANTIC: 0.5, PROCEDURAL: None})
    # 0.8 * (1 - 0.8 * 0.5) = 0.48
    assert result.reward == pytest.approx({CORE: 0.48, EPISODIC: 0.8, SEMANTIC: 0.48, PROCEDURAL: 0.0})
    assert result.weights == {CORE: 1.0, EPISODIC: 1.0, SEMANTIC: 4.0, PROCEDURAL: 1.0}
    assert result.retrieval_counts == {EPISODIC: 1, SEMANTIC: 2, PROCEDURAL: 0}
    assert result.status[PROCEDURAL] is RewardStatus.INVALID
    assert {result.status[agent] for agent in (CORE, EPISODIC, SEMANTIC)} == {RewardStatus.SCORED}


@pytest.mark.parametrize("agent", Agent)
def test_one_invalid_agent_leaves_the_others_untouched(agent):
    qa = qa_of(1, 0.5, retrieved=(SEMANTIC,))
    fine = score(outputs_of(), qa, RewardConfig())
    failed = RoleOutput(failure=BROKEN, model_tokens=0, expert_tokens=100)
    broken = score(outputs_of(**{agent.value: failed}), qa, RewardConfig())
    assert (broken.reward[agent], broken.status[agent]) == (0.0, RewardStatus.INVALID)
    assert broken.weights == fine.weights
    for other in set(Agent) - {agent}:
        assert broken.reward[other] == fine.reward[other] == 0.75
        assert broken.status[other] is RewardStatus.SCORED


def test_the_order_of_outputs_never_matters():
    outputs = outputs_of(core=RoleOutput(failure=None, model_tokens=300, expert_tokens=0))
    qa = qa_of(1, retrieved=(PROCEDURAL,))
    expected = score(outputs, qa, RewardConfig())
    for order in itertools.permutations(Agent):
        assert score({agent: outputs[agent] for agent in order}, qa, RewardConfig()) == expected


@pytest.mark.parametrize(
    "qa, status", [(qa_of(), RewardStatus.NO_QUESTIONS), (qa_of(None, None), RewardStatus.NOT_JUDGED)]
)
def test_without_an_accuracy_every_reward_is_missing_however_much_was_written(qa, status):
    spam = RoleOutput(failure=None, model_tokens=100_000, expert_tokens=0)
    failed = RoleOutput(failure=BROKEN, model_tokens=0, expert_tokens=0)
    result = score(outputs_of(episodic=spam, semantic=failed), qa, RewardConfig())
    assert result.qa is None
    assert result.reward == dict.fromkeys(Agent)
    assert result.status == dict.fromkeys(Agent, status)
    assert result.num_missing_verdicts == len(qa.verdicts)


@pytest.mark.parametrize("agent", Agent)
def test_an_agent_that_was_not_asked_has_no_reward_and_the_others_keep_theirs(agent):
    too_long = Failure(kind=FailureKind.PROMPT_TOO_LONG, detail="30000 tokens")
    outputs = outputs_of(**{agent.value: RoleOutput(failure=too_long, model_tokens=0, expert_tokens=9)})
    result = score(outputs, qa_of(1, 0), RewardConfig())
    others = {other: 0.5 for other in Agent if other is not agent}
    assert result.reward == others | {agent: None}
    assert (result.status[agent], result.parts["format"][agent], result.parts["length_penalty"][agent]) == (
        RewardStatus.PROMPT_TOO_LONG, None, None,
    )  # fmt: skip
    assert [result.parts["format"][other] for other in others] == [1.0] * 3


def test_a_weight_changes_no_reward():
    retrieved = qa_of(1, retrieved=(EPISODIC,))
    plain, boosted = (score(outputs_of(), retrieved, RewardConfig(alpha=alpha)) for alpha in (1.0, 8.0))
    assert plain.reward == boosted.reward == dict.fromkeys(Agent, 1.0)
    assert (plain.weights[EPISODIC], boosted.weights[EPISODIC]) == (1.0, 8.0)


def test_the_length_weight_is_the_share_a_full_penalty_takes():
    long = RoleOutput(failure=None, model_tokens=2000, expert_tokens=1000)
    rewards = [
        score(outputs_of(semantic=long), qa_of(1), RewardConfig(length_weight=weight)).reward[SEMANTIC]
        for weight in (0.0, 0.8, 1.0)
    ]
    assert rewards == pytest.approx([1.0, 0.2, 0.0])


@pytest.mark.parametrize("wrong", [{"num_questions": 0}, {"top_k": 0}, {"length_weight": 1.5}, {"alpha": 0.0}])
def test_reward_config_refuses_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RewardConfig(**wrong)


# what is asked, and what lengths are compared with


def asked_dialogue() -> Dialogue:
    """Three sessions of one turn with 2, 1 and 0 questions."""
    sessions = tuple(
        Session(
            id=f"D{n}",
            index=n,
            timestamp=DAY,
            turns=(Turn(id=f"D{n}:1", speaker="Ann", role="user", text=f"turn {n}"),),
        )
        for n in range(3)
    )
    questions = tuple(
        replace(question(text), id=text, evidence=evidence_turns)
        for text, evidence_turns in (("a", ("D0:1",)), ("b", ("D0:1",)), ("c", ("D0:1", "D1:1")))
    )
    return Dialogue(id="d", speakers=("Ann", "Ben"), sessions=sessions, questions=questions)


def chosen(session: int, **config) -> set[str]:
    return {
        q.text
        for q in choose_questions(asked_dialogue().questions_by_session(), session, RewardConfig(**config), seed="s")
    }


def test_a_sessions_own_questions_are_asked_after_it():
    assert [chosen(session) for session in range(3)] == [{"a", "b"}, {"c"}, set()]
    assert len(chosen(0, num_questions=1)) == 1


def test_earlier_questions_fill_up_and_never_displace_a_sessions_own():
    assert [chosen(session, earlier_questions=True) for session in range(3)] == [{"a", "b"}, {"a", "b", "c"}] + [
        {"a", "b", "c"}
    ]
    assert "c" in chosen(1, earlier_questions=True, num_questions=2)
    assert chosen(1, earlier_questions=True, num_questions=1) == {"c"}


def test_all_members_of_a_group_are_asked_the_same():
    config = RewardConfig(num_questions=1)
    draws = [
        choose_questions(asked_dialogue().questions_by_session(), 0, config, seed=f"{step}")[0].text
        for step in range(20)
    ]
    again = [
        choose_questions(asked_dialogue().questions_by_session(), 0, config, seed=f"{step}")[0].text
        for step in range(20)
    ]
    assert draws == again and set(draws) == {"a", "b"}


def test_lengths_are_compared_with_the_experts_session_or_its_mean():
    written = [{CORE: 0, EPISODIC: 40, SEMANTIC: 0, PROCEDURAL: 0}, {CORE: 8, EPISODIC: 0, SEMANTIC: 32, PROCEDURAL: 0}]
    assert expert_lengths(written, LengthScope.SESSION) == written
    assert expert_lengths(written, LengthScope.MEAN) == [dict.fromkeys(Agent, 10.0)] * 2


def test_with_both_lower_bounds_at_zero_nothing_is_too_short():
    config = LengthConfig(
        scope=LengthScope.MEAN, tolerance_tokens=0, ratio_lowest=0, ratio_lower=0, ratio_upper=0, ratio_highest=8
    )
    penalties = [length_penalty(EPISODIC, tokens, 10.0, config) for tokens in (0, 20, 40, 80, 800)]
    assert penalties == pytest.approx([0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize(
    "bounds", [{"ratio_lowest": 0.5, "ratio_lower": 0.5}, {"ratio_lowest": 0.6, "ratio_lower": 0.5}]
)
def test_lower_bounds_that_leave_no_ramp_are_refused(bounds):
    with pytest.raises(ValueError, match="ratio_lowest"):
        LengthConfig(**bounds)

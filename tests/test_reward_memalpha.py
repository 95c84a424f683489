"""The reward of memalpha by hand-worked numbers, its credit, and what is missing and stays missing."""

import json
from dataclasses import replace
from datetime import datetime

import pytest

from membuilder.bank.retrieve import Retrieval
from membuilder.config import dump, load
from membuilder.errors import ConfigError
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.schemes.memalpha.scheme import MemAlpha
from membuilder.schemes.scheme import Call, CallOutcome
from membuilder.types import Bank, Dialogue, Entry, Failure, FailureKind, Question, Session, Turn
from reward.asking import answer_banks
from reward.credit import evidence_shares
from reward.judges import Verdict, load_judge
from reward.length import LengthConfig
from reward.memalpha import refuse_unused, score
from reward.memalpha_config import Credit, MemAlphaRewardConfig
from reward.qa import QAResult
from reward.rollouts import Episode, chunk_questions, episode_questions, means_by_source, score_episodes
from reward.score import RewardConfig, RewardStatus, RoleOutput, Score
from reward.validity import by_rules, make_validity
from rollout.types import Completion, Group, Rollout, Sample
from tests.fakes import HashEmbedder
from trainer.rl_config import RLConfig

DAY = datetime(2024, 1, 1)
RAN = CallOutcome.RAN
WRITER = "writer"


def call(outcome: CallOutcome = RAN, text: str | None = "a text", entry: str | None = "m1") -> Call:
    return Call(name="memory_insert", arguments={}, outcome=outcome, text=text, entry=entry)


def entry(number: int, session: int, part: str = "semantic") -> Entry:
    return Entry(id=f"m{number}", agent=part, text=f"text {number}", session=session, timestamp=DAY, source_turns=())


def answered(*correct: float | None, found=(), rests_on=()) -> QAResult:
    """Verdicts as given; `found` has the entries of each question, `rests_on` what its answer was taken from."""
    found, rests_on = [*found, *[()] * len(correct)], [*rests_on, *[None] * len(correct)]
    pairs = list(zip(correct, found, rests_on, strict=False))
    retrievals = tuple(Retrieval(entries=tuple(es), scores=(1.0,) * len(es)) for _, es, _ in pairs)
    verdicts = tuple(
        Verdict(correct=c, reason="", cause="" if c is not None else "down", rests_on=r) for c, _, r in pairs
    )
    return QAResult(retrievals=retrievals, verdicts=verdicts)


def output(*calls: Call, **changed) -> RoleOutput:
    settings = {"failure": None, "model_tokens": 10, "expert_tokens": None, "memory_tokens": 25, "chunk_tokens": 100}
    return RoleOutput(calls=calls, **settings | changed)


def scored(out: RoleOutput, qa: QAResult, config: RewardConfig = RewardConfig()) -> Score:  # noqa: B008  (frozen)
    return score({WRITER: out}, qa, config)


def parts_of(found: Score) -> dict[str, float | None]:
    return {name: of_roles[WRITER] for name, of_roles in found.parts.items()}


# the formula


def test_a_reward_worked_by_hand():
    out = output(call(), call(CallOutcome.SCHEMA, None, None), call(), call(), validity=(1.0, 0.0, 1.0))
    found = scored(out, answered(1.0, 0.5, 0.0))
    assert parts_of(found) == {"r1": 0.5, "r2": 0.75, "r3": 0.75, "r4": pytest.approx(2 / 3)}
    assert found.reward[WRITER] == pytest.approx(0.5 + 0.75 + 0.05 * 0.75 + 0.1 * 2 / 3)
    assert found.status[WRITER] is RewardStatus.SCORED and found.qa == 0.5 and found.weights == {WRITER: 1.0}


def test_every_weight_and_the_threshold_are_settings():
    out = output(call(), validity=(0.0,), source="booksum")
    settings = MemAlphaRewardConfig(beta=0.4, gamma=1.0, r1_threshold=0.5, weights={"booksum": 2.0})
    found = scored(out, answered(0.4), RewardConfig(memalpha=settings))
    assert found.reward[WRITER] == pytest.approx(0 + 1 + 0.4 * 0.75 + 0) and found.weights[WRITER] == 2.0
    assert scored(out, answered(0.5), RewardConfig(memalpha=settings)).parts["r1"][WRITER] == 1
    assert scored(output(source="squad"), answered(1.0), RewardConfig(memalpha=settings)).weights[WRITER] == 1


def test_a_memory_longer_than_what_was_read_costs_and_of_nothing_read_nothing_is_measured():
    assert scored(output(memory_tokens=150), answered(1.0)).parts["r3"][WRITER] == -0.5
    empty = scored(output(memory_tokens=5, chunk_tokens=0), answered(1.0))
    assert empty.parts["r3"][WRITER] is None and empty.reward[WRITER] == pytest.approx(1 + 1 + 0.1)


BROKEN = Failure(kind=FailureKind.TRUNCATED, detail="cut")
DELETED, FAILED = call(text=None), call(CallOutcome.UNKNOWN_ID, None, None)


@pytest.mark.parametrize(
    "out, r2, r4",
    [
        (output(), 1, 1),  # nothing to store is no failure
        (output(failure=BROKEN), 0, None),  # an answer that could not be read is no empty one
        (output(FAILED, failure=BROKEN), 0, None),  # what failed is not judged
        (output(DELETED), 1, 1),  # a delete is not punished
        (output(DELETED, call(), validity=(0.0,)), 1, 0),  # nor does it make up for what is invalid
        (output(FAILED, DELETED), 0.5, 1),
        (output(FAILED, call(), validity=(1.0,)), 0.5, 1),
        (output(call(CallOutcome.DUPLICATE, None, None)), 0, None),
        (output(call(), call(), validity=(None, 1.0)), 1, 1),  # a missing verdict is not in the mean
    ],
)
def test_what_calls_come_to(out, r2, r4):
    found = scored(out, answered(1.0))
    assert (found.parts["r2"][WRITER], found.parts["r4"][WRITER]) == (r2, r4)
    assert found.reward[WRITER] == pytest.approx(1 + r2 + 0.05 * 0.75 + 0.1 * (r4 or 0))


def test_a_chunk_without_calls_is_nothing_as_published():
    config = RewardConfig(memalpha=MemAlphaRewardConfig(empty_is_valid=False))
    found = scored(output(), answered(1.0), config)
    assert (found.parts["r2"][WRITER], found.parts["r4"][WRITER]) == (0, 0)
    assert scored(output(DELETED), answered(1.0), config).parts["r4"][WRITER] == 1


# missing stays missing


def test_what_could_not_be_had_is_missing_and_never_0():
    nobody = scored(output(call(), validity=(1.0,)), answered(None, None))
    assert nobody.reward == {WRITER: None} and nobody.status[WRITER] is RewardStatus.NOT_JUDGED
    assert nobody.num_missing_verdicts == 2
    lost = scored(output(call(), call(), validity=(None, None)), answered(1.0))
    assert lost.reward == {WRITER: None} and lost.status[WRITER] is RewardStatus.NOT_JUDGED
    assert lost.num_missing_verdicts == 2 and lost.parts["r1"][WRITER] == 1
    unused = RewardConfig(memalpha=MemAlphaRewardConfig(gamma=0.0))
    assert scored(output(call(), validity=(None,)), answered(1.0), unused).reward[WRITER] is not None


def test_of_no_questions_nothing_is_known_and_a_prompt_too_long_was_not_asked():
    none = scored(output(), answered())
    assert none.reward == {WRITER: None} and none.status[WRITER] is RewardStatus.NO_QUESTIONS
    long = scored(output(failure=Failure(kind=FailureKind.PROMPT_TOO_LONG, detail="")), answered(1.0))
    assert long.reward == {WRITER: None} and long.status[WRITER] is RewardStatus.PROMPT_TOO_LONG


def test_a_judge_that_is_down_for_10_percent_of_calls_loses_these_questions_alone():
    verdicts = [None if number % 10 == 0 else float(number % 2) for number in range(100)]
    found = scored(output(call(), validity=(1.0,)), answered(*verdicts))
    assert found.parts["r1"][WRITER] == pytest.approx(50 / 90) and found.num_missing_verdicts == 10


# credit


def test_evidence_gives_each_chunk_the_share_of_the_entries_it_wrote_last():
    first, second, newer = entry(1, 0), entry(2, 1), entry(3, 2)
    # question 1 (right) was given entries of chunks 0 and 2, question 2 (half right) one of chunk 1, question 3 nothing
    qa = answered(1.0, 0.5, 1.0, None, found=[(first, newer), (second,), (), (first,)])
    shares = evidence_shares(qa, 3, share=1.0)
    # of 3 judged questions: chunk 0: 1/3 / 2 + 1/3 / 3; chunk 1: 0.5/3 + 1/3 / 3; chunk 2: 1/3 / 2 + 1/3 / 3
    assert shares == pytest.approx([1 / 6 + 1 / 9, 1 / 6 + 1 / 9, 1 / 6 + 1 / 9])
    assert sum(shares) == pytest.approx(qa.accuracy)
    half = evidence_shares(qa, 3, share=0.5)
    assert half == pytest.approx([(share + qa.accuracy / 3) / 2 for share in shares])
    assert sum(half) == pytest.approx(qa.accuracy)


def test_what_the_answer_was_taken_from_earns_it_and_not_what_was_found_beside_it():
    first, second = entry(1, 0), entry(2, 1)
    named = answered(1.0, 1.0, found=[(first, second), (first, second)], rests_on=[("m2",), ()])
    assert evidence_shares(named, 2, share=1.0) == pytest.approx(
        [0.25, 0.75]
    )  # () is the core: nobody's, so everybody's
    assert evidence_shares(answered(None), 2, share=1.0) is None


def test_under_evidence_r1_of_the_chunks_sums_to_r1():
    config = RewardConfig(credit=Credit.EVIDENCE)
    qa = answered(1.0, 0.0, found=[(entry(1, 0),), (entry(1, 0),)])
    r1 = [scored(output(session=t, num_sessions=3), qa, config).parts["r1"][WRITER] for t in range(3)]
    assert r1 == pytest.approx([0.25 / 3 + 0.25, 0.25 / 3, 0.25 / 3]) and sum(r1) == pytest.approx(0.5)


def test_questions_about_a_chunk_alone_add_to_it_with_their_weight():
    config = RewardConfig(chunk_questions=2, memalpha=MemAlphaRewardConfig(chunk_weight=0.5))
    without = scored(output(chunk_qa=answered()), answered(1.0), config)
    assert without.parts["chunk"][WRITER] is None
    found = scored(output(chunk_qa=answered(1.0, 0.5)), answered(1.0), config)
    assert found.reward[WRITER] == pytest.approx(without.reward[WRITER] + 0.5 * 0.75)
    assert scored(output(chunk_qa=answered(None)), answered(1.0), config).reward[WRITER] is None


# episodes


def turn(chunk: int, line: int, text: str) -> Turn:
    return Turn(id=f"C{chunk}:{line}", speaker="text", role="user", text=text)


def dialogue(num_questions: int = 2, source: str = "squad") -> Dialogue:
    sessions = tuple(
        Session(id=f"C{n + 1}", index=n, timestamp=DAY, turns=(turn(n + 1, 1, "one two"), turn(n + 1, 2, "three")))
        for n in range(2)
    )
    asked = tuple(
        Question(id=f"q{n}", text=f"{n}?", answer="gold", category=source, evidence=(f"C{n % 2 + 1}:1",))
        for n in range(num_questions)
    )
    return Dialogue(id=f"{source}-7", speakers=(), sessions=sessions, questions=asked)


def sample(*calls: Call) -> Sample:
    done = Completion(token_ids=(1,), rollout_logprobs=(0.0,), finished=True, weight_version=0)
    return Sample(prompt_token_ids=(1,), completion=done, text="", written=("x",), failure=None, calls=calls)


def episode(answers: list[QAResult], **changed) -> Episode:
    bank = Bank(core="the core", entries=(entry(1, 0), entry(2, 0, "episodic"), entry(3, 1)), deleted=("m3",))
    calls = [(call(text="old news", entry="m2"), call(text="c", entry=None)), (call(CallOutcome.SCHEMA, None, None),)]
    groups = [
        Group(
            id=f"g{t}",
            dialogue_id="squad-7",
            session=dialogue().sessions[t],
            rollouts=tuple(Rollout(samples={WRITER: sample(*calls[t])}, bank=bank) for _ in answers),
        )
        for t in range(2)
    ]
    return Episode(dialogue=dialogue(), groups=groups, answers=answers, expert_tokens=[{}, {}], **changed)


def words(texts) -> int:
    return sum(len(text.split()) for text in texts)


def test_an_episode_is_measured_once_and_every_chunk_is_scored():
    asked = []

    def validity(stored):
        asked.append(list(stored))
        return [Verdict(correct=None if part == "core" else 0.0, reason="", cause="lost") for part, _ in stored]

    both = [episode([answered(1.0), answered(0.0)]), episode([answered(1.0), answered(None)])]
    found = score_episodes(both, words, score, RewardConfig(), validity)
    assert asked == [[("episodic", "old news"), ("core", "c")]]  # once a step, whatever the rollouts
    ((first, second), (_, last)) = found
    assert [len(group.scores) for group in (first, second)] == [2, 2]
    # 6 words of memory (2 core, 2 each of two entries) over 6 words of chunks
    assert parts_of(first.scores[0]) == {"r1": 1.0, "r2": 1.0, "r3": 0.0, "r4": 0.0}
    assert parts_of(second.scores[1]) == {"r1": 0.0, "r2": 0.0, "r3": 0.0, "r4": None}
    assert first.scores[0].missing == {"lost": 1} and second.scores[0].missing == {}
    assert last.scores[1].reward == {WRITER: None} and last.scores[1].missing == {"down": 1}
    assert means_by_source([first, second], {"squad-7": "squad"}) == {
        "r1/squad": 0.5, "r2/squad": 0.5, "r3/squad": 0.0, "r4/squad": 0.0,
    }  # fmt: skip


def test_each_chunk_gets_the_answers_about_it():
    about = [[answered(1.0)], [answered(0.0)]]
    config = RewardConfig(chunk_questions=1)
    ((first, second),) = score_episodes(
        [episode([answered(1.0)], chunk_answers=about)], words, score, config, lambda s: [by_rules(each) for each in s]
    )
    assert [each.scores[0].parts["chunk"][WRITER] for each in (first, second)] == [1.0, 0.0]


def test_a_share_of_the_questions_is_the_same_for_all_rollouts_and_another_each_step():
    config = RewardConfig(judge="offline", question_share=0.2)
    whole = dialogue(20)
    asked = episode_questions(whole, config, "step 1")
    assert len(asked) == 4 and asked == episode_questions(whole, config, "step 1")
    assert asked != episode_questions(whole, config, "step 2")
    assert (
        len(episode_questions(dialogue(1), config, "step 1")) == 1 and episode_questions(dialogue(0), config, "") == []
    )
    assert [each.id for each in asked] == sorted((each.id for each in asked), key=lambda name: int(name[1:]))


def test_without_evidence_or_where_replies_are_read_every_question_is_asked():
    plain, unanswerable = Question(id="a", text="?", answer="x", category="squad", evidence=()), dialogue().questions[0]
    mixed = replace(dialogue(), questions=(plain, unanswerable))
    names = lambda judge: [each.id for each in episode_questions(mixed, RewardConfig(judge=judge), "")]  # noqa: E731
    assert names("evidence") == ["q0"] and names("offline") == ["a", "q0"]
    assert [each.id for each in episode_questions(replace(mixed, questions=(plain,)), RewardConfig(), "")] == ["a"]


def test_a_chunks_own_questions_are_those_whose_last_evidence_stands_in_it():
    chosen = chunk_questions(dialogue(8), RewardConfig(chunk_questions=3), "step 1")
    assert [len(each) for each in chosen] == [3, 3] and {int(each.id[1:]) % 2 for each in chosen[0]} == {0}
    assert chunk_questions(dialogue(8), RewardConfig(), "step 1") == [[], []]


def test_from_an_answer_of_the_writer_to_its_reward():
    scheme = MemAlpha(MemAlphaConfig(), count_tokens=words)
    session = Session(
        id="C1", index=0, timestamp=DAY, turns=(turn(1, 1, "Ann lives in Oslo."), turn(1, 2, "It rains."))
    )
    insert = {"name": "memory_insert", "arguments": {"memory_type": "semantic_memory", "content": "Ann lives in Oslo"}}
    broken = {"name": "memory_delete", "arguments": {"memory_type": "semantic_memory", "memory_id": "m9"}}
    text = "\n".join(f"<tool_call>\n{json.dumps(each)}\n</tool_call>" for each in (insert, broken))
    result = scheme.apply(session, Bank(), {WRITER: scheme.parse(WRITER, text, session)}, {WRITER: ()})
    asked = Question(id="q", text="Where does Ann live?", answer="Oslo", category="squad", evidence=())
    whole = Dialogue(id="squad-7", speakers=(), sessions=(session,), questions=(asked,))
    answers = answer_banks([(result.bank, [asked])], scheme, HashEmbedder(), load_judge("offline"))
    rollout = Rollout(samples={WRITER: sample(*result.calls[WRITER])}, bank=result.bank)
    group = Group(id="g", dialogue_id="squad-7", session=session, rollouts=(rollout,))
    one = Episode(dialogue=whole, groups=[group], answers=answers, expert_tokens=[{}])
    (((found,),),) = [
        [each.scores for each in of]
        for of in score_episodes([one], words, score, RewardConfig(), make_validity(RewardConfig()))
    ]
    # 4 words of memory for 6 words read
    assert parts_of(found) == {"r1": 1.0, "r2": 0.5, "r3": pytest.approx(1 / 3), "r4": 1.0}
    assert answers[0].verdicts[0].rests_on == (result.bank.entries[0].id,)


def test_an_answer_is_given_what_fits_its_budget_and_nothing_is_embedded():
    entries = tuple(replace(entry(n, 0), text=f"Ann has n{n}") for n in range(1, 9))
    embedder = HashEmbedder()
    asked = Question(id="q", text="Ann?", answer="x", category="squad", evidence=())
    for budget, number in ((1000, 8), (9, 3), (1, 0)):
        scheme = MemAlpha(MemAlphaConfig(answer_tokens=budget), count_tokens=words)
        (found,) = answer_banks([(Bank(entries=entries), [asked])], scheme, embedder, load_judge("offline"))
        assert len(found.retrievals[0].entries) == number
    assert embedder.embedded == []


# settings


def test_settings_come_back_from_a_file(tmp_path):
    settings = ["reward.credit=evidence", "reward.memalpha.beta=0.4", "reward.memalpha.weights={squad: 2}"]
    config = load(RewardConfig, None, [each.removeprefix("reward.") for each in settings])
    assert config.memalpha.weights == {"squad": 2.0} and config.credit is Credit.EVIDENCE
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(RewardConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "settings, problem",
    [
        (["reward.memalpha.beta=0.2"], "reward.memalpha.beta without effect under scheme=four_agents"),
        (
            ["reward.credit=evidence", "reward.chunk_questions=2"],
            "reward.credit, reward.chunk_questions without effect",
        ),
        (["reward.credit=evidence", "reward.memalpha.r1_threshold=0.5"], "r1_threshold without effect"),
        (["reward.question_share=0.5"], "reward.question_share without effect"),
        (["reward.memalpha.validity=llm"], "needs validator"),
        (["reward.validator.name=m"], "has no use for a validator"),
        (["reward.memalpha.gamma=-1"], "gamma"),
        (["reward.question_share=0"], "question_share"),
    ],
)
def test_a_key_without_effect_is_refused_by_name(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load(RLConfig, None, settings)
    load(RLConfig, None, ["dense=false", "reward.question_share=0.5"])


def test_keys_of_the_other_scheme_are_refused_by_name():
    with pytest.raises(ValueError, match="reward.alpha, reward.length.* without effect under scheme=memalpha"):
        refuse_unused("memalpha", RewardConfig(alpha=2.0, length=LengthConfig(tolerance_tokens=5)), is_dense=False)
    refuse_unused("memalpha", RewardConfig(credit=Credit.EVIDENCE, question_share=0.5), is_dense=False)
    refuse_unused("a/scheme/of/your/own", RewardConfig(credit=Credit.EVIDENCE, alpha=2.0), is_dense=True)

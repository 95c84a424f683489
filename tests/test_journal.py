"""The journal gives back exactly what it was given, real groups and odd ones, or refuses."""

import math
import os
import random
import struct
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from membuilder.datasets.windows import in_windows
from membuilder.errors import CheckpointError, ConfigError, WriteError
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank, CoreQuote, Entry, Failure, FailureKind, Session, Turn
from reward import four_agents
from reward.judges import evidence
from reward.rollouts import ScoredGroup
from reward.score import RewardConfig, RewardStatus, Score
from rollout.routed_experts import RoutedExperts
from rollout.tokens import TokenCounter, encode_completion
from rollout.types import Completion, Rollout, Sample, SamplingConfig
from tests.fakes import HashEmbedder, streamed
from trainer.checkpoint.checksummed_json import encode, seal
from trainer.configs import States
from trainer.data.corpus import expert_builds, training_text
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector
from trainer.experience.rollout_cache import Experience, RolloutCache
from trainer.experience.session_stream import SessionStream
from trainer.model.tiny_model import train_tokenizer

PROMPTS = PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=0)
SCHEME = FourAgents(PROMPTS)
ANSWERS = ['{"#1":"add","#2":"add"}', '{"#1":"add"}', "{}", "no JSON at all"]


class DrawingEngine:
    """Answers each prompt with one of ANSWERS and log-probs drawn from the seed."""

    max_model_len = 10_000

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def stream(self, prompts, n, sampling, seed):
        draw = random.Random(seed)
        return streamed([[self._completion(draw) for _ in range(n)] for _ in prompts])

    def _completion(self, draw: random.Random) -> Completion:
        ids = tuple(encode_completion(self.tokenizer, draw.choice(ANSWERS)))
        logprobs = tuple(-draw.expovariate(3) for _ in ids)
        return Completion(token_ids=ids, rollout_logprobs=logprobs, finished=draw.random() < 0.9, weight_version=7)


@pytest.fixture(scope="module")
def real_groups() -> list[ScoredGroup]:
    """Two steps of sampling and scoring, the second from the banks of the first."""
    embedder = HashEmbedder()
    builds = expert_builds([in_windows(d, 3) for d in generate(3, 1, "train")], embedder, SCHEME, "rules")
    tokenizer = train_tokenizer(training_text(builds, SCHEME), SCHEME.tiny_tokens(3), 600)
    collector = Collector(
        engine=DrawingEngine(tokenizer),
        tokenizer=tokenizer,
        embedder=embedder,
        judge=evidence,
        scheme=SCHEME,
        formula=four_agents.score,
        sampling=SamplingConfig(max_tokens=40),
        reward=RewardConfig(earlier_questions=True),
        num_rollouts=3,
        count_tokens=TokenCounter(tokenizer),
    )
    stream = SessionStream(builds, embedder, SCHEME, 4, States.POLICY, seed=1)
    return [group for seed in (1, 2, 3) for group in collector.dense(stream, 0.4, seed)]


def odd_group(**completion) -> ScoredGroup:
    """Everything the types allow at its edges."""
    noon = datetime(2023, 5, 8, 12, 0, 0, 1)
    zone = timezone(timedelta(hours=-3, minutes=-30))
    turns = (
        Turn(id="", speaker='"\\', role="user", text="\x00\n\u2028\u2029\x7f é 猫 🐈", caption=""),
        Turn(id="D1:2", speaker="Ann", role="assistant", text="", caption=None),
    )
    logprobs = (-0.0, 0.0, 5e-324, -1.7976931348623157e308, 0.1 + 0.2, -1 / 3)
    sample = Sample(
        prompt_token_ids=(0, 2**31, 2**53 + 1),
        completion=Completion(
            **dict(token_ids=(1,) * 6, rollout_logprobs=logprobs, finished=False, weight_version=0) | completion
        ),
        text="{",
        written=(),
        failure=Failure(kind=FailureKind.NOT_JSON, detail="line 1"),
    )
    entry = Entry(
        id="m1", agent=Agent.SEMANTIC, text="", session=0, timestamp=noon.replace(tzinfo=zone), source_turns=("",)
    )
    bank = Bank(
        core="x", core_quotes=(CoreQuote(turn_id="", text="t"),), entries=(entry, replace(entry, supersedes=("m1",)))
    )
    score = Score(
        reward=dict.fromkeys(Agent) | {Agent.CORE: 0.1},
        status={agent: status for agent, status in zip(Agent, reversed(RewardStatus), strict=False)},
        qa=None,
        parts={
            "format": dict.fromkeys(reversed(Agent), 1.0) | {Agent.CORE: None},
            "length_penalty": {Agent.CORE: None, Agent.EPISODIC: 0.30000000000000004},
        },
        weights={},
        retrieval_counts={Agent.PROCEDURAL: 0},
        num_missing_verdicts=3,
    )
    session = Session(id="s", index=0, timestamp=noon.replace(tzinfo=UTC), turns=turns)
    too_long = replace(
        sample, completion=None, text=None, failure=Failure(kind=FailureKind.PROMPT_TOO_LONG, detail="30000 tokens")
    )
    rollouts = (
        Rollout(samples=dict.fromkeys(reversed(Agent), sample) | {Agent.SEMANTIC: too_long}, bank=bank),
        Rollout(samples={}, bank=Bank()),
    )
    return ScoredGroup(
        id="step 1 / slot 2",
        dialogue_id="🐈",
        session=session,
        rollouts=rollouts,
        scores=(score, score),
        expert_tokens=dict.fromkeys(Agent, 12.5),
    )


def exact(value):
    """Types, order of keys and bits of floats: more than `==` compares."""
    if is_dataclass(value):
        return type(value), [(field.name, exact(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, tuple | list):
        return type(value), [exact(item) for item in value]
    if isinstance(value, float):
        return float, struct.pack("<d", value)
    if isinstance(value, Agent):  # to records a role is its name
        return str, str(value)
    if isinstance(value, Enum):
        return type(value), value.name
    return type(value), value.isoformat() if isinstance(value, datetime) else value


def whole_numbers_as_floats(group: ScoredGroup) -> ScoredGroup:
    """Counts of tokens stand in a field of floats."""
    return replace(group, expert_tokens={agent: float(value) for agent, value in group.expert_tokens.items()})


SETTINGS = {"optim.lr": 1e-6, "loss.name": "adrpo", "data.path": None}


def journal(root: Path, settings: dict = SETTINGS, anew: bool = False) -> RolloutCache:
    return RolloutCache(root, World(), settings, anew)


def put(root: Path, step: int, scored: list) -> Path:
    journal(root).write(step, Experience(scored=scored, steered={}))
    return root / f"step_{step}.json"


def got(root: Path, step: int) -> list:
    return journal(root).read(step).scored


def test_real_groups_come_back_exactly(tmp_path, real_groups):
    samples = [sample for g in real_groups for rollout in g.rollouts for sample in rollout.samples.values()]
    assert any(sample.failure for sample in samples) and any(sample.written for sample in samples)
    assert any(entry for g in real_groups for rollout in g.rollouts for entry in rollout.bank.entries)
    statuses = {status for g in real_groups for score in g.scores for status in score.status.values()}
    assert {RewardStatus.SCORED, RewardStatus.INVALID} <= statuses
    put(tmp_path, 3, real_groups)
    back = got(tmp_path, 3)
    assert back == real_groups
    assert [exact(group) for group in back] == [exact(whole_numbers_as_floats(group)) for group in real_groups]


def test_odd_groups_come_back_exactly(tmp_path):
    group = odd_group()
    put(tmp_path, 3, [group, group])
    assert [exact(back) for back in got(tmp_path, 3)] == [exact(group)] * 2
    put(tmp_path, 4, [])
    assert got(tmp_path, 4) == []


def beginning(group: ScoredGroup, *prompts: tuple[int, ...]) -> ScoredGroup:
    """The group with one rollout for each prompt of its core agent."""
    (sample, *_), bank = group.rollouts[0].samples.values(), Bank()
    samples = [replace(sample, prompt_token_ids=prompt) for prompt in prompts]
    rollouts = tuple(Rollout(samples={Agent.CORE: sample}, bank=bank) for sample in samples)
    return replace(group, rollouts=rollouts, scores=group.scores[:1] * len(rollouts))


@pytest.mark.parametrize("ends", [((), ()), ((8,), (9,)), ((), (9, 9)), ((8,), ())])
def test_what_prompts_begin_with_is_written_once(tmp_path, ends):
    group = beginning(odd_group(), *((123456, 7, *end) for end in ends))
    assert put(tmp_path, 3, [group]).read_bytes().count(b"123456") == 1
    assert [exact(back) for back in got(tmp_path, 3)] == [exact(group)]


def test_prompts_that_share_nothing_come_back(tmp_path):
    group = beginning(odd_group(), (), (1, 2), (2, 1))
    put(tmp_path, 3, [group, beginning(odd_group(), ())])
    assert got(tmp_path, 3) == [group, beginning(odd_group(), ())]


def test_a_journal_of_a_version_before_has_whole_prompts(tmp_path, real_groups):
    path = put(tmp_path, 3, [])
    before = encode(Experience(scored=real_groups, steered={}), Experience, "before")
    path.write_bytes(b"".join(seal("journal of step 3", before)))
    assert got(tmp_path, 3) == real_groups


def test_any_finite_float_comes_back_bit_for_bit(tmp_path):
    draw = random.Random(0)
    drawn = (struct.unpack("<d", draw.randbytes(8))[0] for _ in range(5000))
    logprobs = tuple(value for value in drawn if math.isfinite(value))
    put(tmp_path, 0, [odd_group(rollout_logprobs=logprobs)])
    (back,) = got(tmp_path, 0)
    kept = back.rollouts[0].samples[Agent.CORE].completion.rollout_logprobs
    assert struct.pack(f"<{len(kept)}d", *kept) == struct.pack(f"<{len(logprobs)}d", *logprobs)


@pytest.mark.parametrize(
    "completion",
    [
        {"rollout_logprobs": (-1.0, math.nan)},
        {"rollout_logprobs": (-math.inf,)},
        {"token_ids": (1.5,)},
        {"finished": 1},
        {"token_ids": [1, 2]},
    ],
)
def test_what_json_would_change_is_refused_by_name(tmp_path, completion):
    with pytest.raises(CheckpointError, match="step 3, group 'step 1 / slot 2' cannot be kept exactly"):
        put(tmp_path, 3, [odd_group(**completion)])
    assert journal(tmp_path).read(3) is None


def test_a_reward_that_is_nan_is_not_taken_for_a_missing_one(tmp_path):
    group = odd_group()
    broken = replace(group, scores=(replace(group.scores[0], qa=math.nan),) * 2)
    with pytest.raises(CheckpointError, match="cannot be kept exactly"):
        put(tmp_path, 3, [broken])


@pytest.mark.parametrize("highest", [255, 299])
def test_the_experts_of_a_completion_come_back_and_without_them_nothing_is_written(tmp_path, highest):
    rows = np.array([[[0, highest], [7, 3]], [[highest, 1], [2, 5]]])
    group = odd_group(routed_experts=RoutedExperts.of(rows))
    assert b"routed_experts" in put(tmp_path, 3, [group]).read_bytes()
    (back,) = got(tmp_path, 3)
    assert back == group
    kept = back.rollouts[0].samples[Agent.CORE].completion.routed_experts
    assert np.array_equal(kept.array(), rows) and len(kept.data) == rows.size * (1 + (highest > 255))
    assert b"routed_experts" not in put(tmp_path, 4, [odd_group()]).read_bytes()


def test_each_step_has_its_own(tmp_path):
    first, second = odd_group(token_ids=(1,)), odd_group(token_ids=(2,))
    put(tmp_path, 3, [first])
    put(tmp_path, 4, [second])
    assert (got(tmp_path, 3), got(tmp_path, 4)) == ([first], [second])
    assert journal(tmp_path).read(2) is None
    assert journal(tmp_path / "nowhere").read(3) is None


def test_the_steering_is_kept_too(tmp_path):
    kept = Experience(scored=[], steered={"length_weight": 0.1 + 0.2, "memory_ratio": 1.0})
    journal(tmp_path).write(1, kept)
    assert journal(tmp_path).read(1) == kept


def test_what_a_checkpoint_made_needless_is_forgotten(tmp_path):
    for step in (8, 9, 10):
        put(tmp_path, step, [])
    (tmp_path / "step_7.json.partial").write_bytes(b"[")
    (tmp_path / "notes.txt").write_bytes(b"")
    journal(tmp_path).forget(before_step=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "settings.json", "step_10.json"]
    journal(tmp_path / "nowhere").forget(before_step=10)


def test_what_another_run_sampled_is_neither_used_nor_written_over(tmp_path):
    others = SETTINGS | {"optim.lr": 2e-6}
    journal(tmp_path, SETTINGS, anew=True)
    (tmp_path / "step_0.json.partial").write_bytes(b"[")
    journal(tmp_path, others, anew=True)  # nothing was sampled yet
    journal(tmp_path, others).write(0, Experience(scored=[], steered={}))
    journal(tmp_path, others, anew=False)
    with pytest.raises(ConfigError, match=r"was begun with other settings: optim.lr=2e-06 \(now 1e-06\);"):
        journal(tmp_path, SETTINGS, anew=False)
    with pytest.raises(ConfigError, match=r"sampled in 1 step\(s\): give resume=auto to go on with it, or another"):
        journal(tmp_path, others, anew=True)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(CheckpointError, match=r"settings.json' is missing .* to sample its steps again"):
        journal(tmp_path, SETTINGS, anew=False)
    assert (tmp_path / "step_0.json").exists()


def test_sampling_a_step_anew_drops_what_followed_it(tmp_path):
    for step in (3, 4, 5):
        put(tmp_path, step, [])
    put(tmp_path, 4, [odd_group()])
    assert [journal(tmp_path).read(step) is None for step in (3, 4, 5)] == [False, False, True]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def change_a_logprob(data: bytes) -> bytes:
    assert b"0.30000000000000004" in data
    return data.replace(b"0.30000000000000004", b"0.30000000000000005")


def not_text(data: bytes) -> bytes:
    return data.replace(b'"D1:2"', b'"\xff\xfe"')


@pytest.mark.parametrize("damage", [cut, change_a_logprob, not_text, lambda data: b"", lambda data: b"{}"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = put(tmp_path, 3, [odd_group()])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"step_3.json' is (missing or )?damaged: .*delete the file") as caught:
        got(tmp_path, 3)
    assert str(tmp_path) in str(caught.value)


def test_a_file_under_another_name_is_not_that_step(tmp_path):
    os.rename(put(tmp_path, 3, []), tmp_path / "step_4.json")
    with pytest.raises(CheckpointError, match="holds 'journal of step 3' where 'journal of step 4' belongs"):
        got(tmp_path, 4)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "journal").write_bytes(b"a file stands in the way")
    with pytest.raises(WriteError, match="journal"):
        put(tmp_path / "journal", 3, [])

"""Held-out evaluation: every system that builds memory gets the same questions and the same retrieval."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from membuilder.bank.retrieve import Retrieval
from membuilder.building.baselines import longest_turns, part_of_turns, random_turns, store_all, store_within
from membuilder.evaluation.recall import recall
from membuilder.progress import progress
from membuilder.schemes.scheme import entry_agents
from membuilder.types import Bank, Dialogue, Question, Turn
from reward.rollouts import episode_questions
from rollout.sampler import make_task
from trainer.data.corpus import ExpertBuild
from trainer.experience.collector import Collector


@dataclass(kw_only=True, slots=True)
class BuiltBank:
    """The bank that one system built of a dialogue so far, and how its prompts were answered."""

    bank: Bank = Bank()
    num_outputs: int = 0
    num_valid: int = 0
    """Number of outputs that could be used."""
    num_too_long: int = 0
    """Number of prompts that were too long to be answered; they have no output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemResult:
    """What a system scored on the held-out dialogues."""

    accuracy: float | None
    """Mean verdict of the judge on a question (`evidence`: 1 or 0; `coverage`: the share of the answer that was found);
    None if none could be judged."""
    recall_at_10: float | None
    """Mean share of a question's evidence turns that stand in the core or the ten retrieved entries; None if no
    question names any."""
    memory_tokens: float
    """Mean tokens of a dialogue's final bank, of memory text only."""
    format_valid: float | None
    """Share of the outputs that could be used; None if there were none."""
    questions: int
    prompt_too_long: float
    """Share of the prompts that were too long to be answered."""
    verdicts: Sequence[float | None]
    """The judge's verdict on each question, None where it has none: systems are compared question by question."""

    def row(self) -> dict[str, float | None]:
        """Return all but the verdicts."""
        return {name: value for name, value in asdict(self).items() if name != "verdicts"}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that a training run logs."""
        values = self.row().items()
        return {f"eval/{name}": value for name, value in values if name != "questions" and value is not None}


def build_with_policy(dialogues: Sequence[Dialogue], collector: Collector, label: str) -> list[BuiltBank]:
    """Build all dialogues side by side with greedy decoding, each session from the bank the policy itself built."""
    built = [BuiltBank() for _ in dialogues]
    num_sessions = max((len(dialogue.sessions) for dialogue in dialogues), default=0)
    for index in progress(range(num_sessions), label=label, unit="session", enabled=collector.world.rank == 0):
        active = [pair for pair in zip(dialogues, built, strict=True) if index < len(pair[0].sessions)]
        tasks = [
            make_task(dialogue.id, dialogue.sessions[index], each.bank, collector.scheme, collector.embedder)
            for dialogue, each in active
        ]
        groups = collector.sample(tasks, collector.greedy, 1, seed=0)
        for (_, each), group in zip(active, groups, strict=True):
            (rollout,) = group.rollouts
            answered = [sample for sample in rollout.samples.values() if sample.completion is not None]
            each.bank = rollout.bank
            each.num_outputs += len(answered)
            each.num_valid += sum(sample.failure is None for sample in answered)
            each.num_too_long += len(rollout.samples) - len(answered)
    return built


@dataclass(frozen=True, kw_only=True, slots=True)
class DialogueScores:
    """How the questions of one dialogue were answered from its final bank."""

    verdicts: list[float | None]
    """Verdicts on the questions, from 0 to 1; None where one could not be judged."""
    recalls: list[float]
    memory_tokens: int
    built: BuiltBank


def tally(dialogues: Sequence[Dialogue], built: Sequence[BuiltBank], collector: Collector) -> list[DialogueScores]:
    """Put to the final banks every question that an episode would be asked at its end."""
    whole = replace(collector.reward, question_share=1.0)
    questions = [episode_questions(dialogue, whole, "") for dialogue in dialogues]
    answers = collector.answer([(each.bank, asked) for each, asked in zip(built, questions, strict=True)])
    return [
        DialogueScores(
            verdicts=[verdict.correct for verdict in answer.verdicts],
            recalls=[
                _recall(q, found, each.bank) for q, found in zip(asked, answer.retrievals, strict=True) if q.evidence
            ],
            memory_tokens=collector.count_tokens(each.bank.memory_text()),
            built=each,
        )
        for asked, answer, each in zip(questions, answers, built, strict=True)
    ]


def summarize(scores: Sequence[DialogueScores]) -> SystemResult:
    """Return the means over all dialogues, of a question or of a dialogue."""
    verdicts = [verdict for each in scores for verdict in each.verdicts]
    judged = [verdict for verdict in verdicts if verdict is not None]
    recalls = [recall for each in scores for recall in each.recalls]
    num_outputs = sum(each.built.num_outputs for each in scores)
    num_too_long = sum(each.built.num_too_long for each in scores)
    return SystemResult(
        accuracy=sum(judged) / len(judged) if judged else None,
        recall_at_10=sum(recalls) / len(recalls) if recalls else None,
        memory_tokens=sum(each.memory_tokens for each in scores) / len(scores),
        format_valid=sum(each.built.num_valid for each in scores) / num_outputs if num_outputs else None,
        questions=len(verdicts),
        prompt_too_long=num_too_long / (num_outputs + num_too_long),
        verdicts=verdicts,
    )


def _recall(question: Question, retrieval: Retrieval, bank: Bank) -> float:
    sources = {turn for entry in retrieval.entries for turn in entry.source_turns}
    return recall(set(question.evidence), sources.union(bank.core_sources)).mean


def without_model(make: Callable[[ExpertBuild], Bank], builds: Sequence[ExpertBuild]) -> list[BuiltBank]:
    """Banks made without a model: nothing can be ill-formed."""
    return [BuiltBank(bank=make(build), num_outputs=1, num_valid=1) for build in builds]


def compare_baselines(held_out: Sequence[ExpertBuild], collector: Collector) -> dict[str, SystemResult]:
    """Judge systems without a model; `random` and `longest` store as many tokens as the rules did of each dialogue."""
    part = part_of_turns(entry_agents(collector.scheme))

    def within(order: Callable[[Dialogue], list[Turn]], build: ExpertBuild) -> Bank:
        budget = collector.count_tokens(build.steps[-1].result.bank.memory_text())
        return store_within(build.dialogue, order(build.dialogue), budget, collector.count_tokens, part)

    systems: dict[str, Callable[[ExpertBuild], Bank]] = {
        "empty": lambda build: Bank(),
        "random": partial(within, random_turns),
        "longest": partial(within, longest_turns),
        "rules": lambda build: build.steps[-1].result.bank,
        "all": lambda build: store_all(build.dialogue, part),
    }
    is_main = collector.world.rank == 0
    bar = progress(systems.items(), label="baselines build and are asked", unit="system", enabled=is_main)
    return {name: _judge(held_out, partial(without_model, make), collector) for name, make in bar}


def judge_policy(held_out: Sequence[ExpertBuild], collector: Collector, name: str) -> SystemResult:
    """Held-out accuracy of whatever model the collector's engine holds."""

    def make(builds: Sequence[ExpertBuild]) -> list[BuiltBank]:
        return build_with_policy([build.dialogue for build in builds], collector, f"{name} builds the held-out banks")

    return _judge(held_out, make, collector)


def _judge(
    held_out: Sequence[ExpertBuild], make: Callable[[Sequence[ExpertBuild]], list[BuiltBank]], collector: Collector
) -> SystemResult:
    """Each process builds and judges its share of the dialogues; all get the result over all."""
    mine = collector.world.shard([len(build.dialogue.sessions) for build in held_out])
    builds = [held_out[index] for index in mine]
    scores = tally([build.dialogue for build in builds], make(builds), collector)
    return summarize(collector.world.gather_in_order(mine, scores))

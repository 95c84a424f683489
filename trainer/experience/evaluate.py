"""What a run compares its policy with: the same questions and the same retrieval for every way of building memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from membuilder.building.baselines import longest_turns, random_turns, store_all, store_within
from membuilder.evaluation.recall import recall
from membuilder.progress import progress
from membuilder.types import Bank, Dialogue, Turn
from reward.qa import QAResult, answer_banks
from rollout.sampler import make_task, sample_groups
from trainer.data.corpus import ExpertBuild
from trainer.experience.collector import Collector


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltBanks:
    """Per dialogue the final bank of one system, how often it answered, and how many of its answers were usable."""

    banks: list[Bank]
    num_outputs: list[int]
    num_valid: list[int]
    num_too_long: list[int]
    """Prompts that were too long to be answered; no outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemResult:
    accuracy: float | None
    """Mean verdict of the judge on a question (`evidence`: 1 or 0; `coverage`: the share of the answer that was found);
    None if none could be judged."""
    recall_at_10: float
    """Mean share of a question's evidence turns that stand in the core or the ten retrieved entries."""
    memory_tokens: float
    """Mean tokens of a dialogue's final bank, of memory text only."""
    format_valid: float | None
    """Share of the outputs that could be used; None if there were none."""
    questions: int
    prompt_too_long: float
    """Share of the prompts that were too long to be answered."""

    def metrics(self) -> dict[str, float]:
        """What a training run logs of it."""
        values = {
            "eval/accuracy": self.accuracy,
            "eval/recall_at_10": self.recall_at_10,
            "eval/memory_tokens": self.memory_tokens,
            "eval/format_valid": self.format_valid,
            "eval/prompt_too_long": self.prompt_too_long,
        }
        return {name: value for name, value in values.items() if value is not None}


def build_with_policy(dialogues: Sequence[Dialogue], collector: Collector, label: str) -> BuiltBanks:
    """Greedy decoding, all dialogues side by side, each session from the bank the policy itself built."""
    banks = [Bank()] * len(dialogues)
    num_outputs, num_valid, num_too_long = ([0] * len(dialogues) for _ in range(3))
    num_sessions = max((len(dialogue.sessions) for dialogue in dialogues), default=0)
    for index in progress(range(num_sessions), label=label, unit="session", enabled=collector.world.rank == 0):
        active = [position for position, dialogue in enumerate(dialogues) if index < len(dialogue.sessions)]
        tasks = [
            make_task(each.id, each.sessions[index], banks[position], collector.scheme, collector.embedder)
            for position, each in ((position, dialogues[position]) for position in active)
        ]
        groups = sample_groups(
            tasks, collector.engine, collector.tokenizer, collector.scheme, collector.greedy, 1, seed=0
        )
        for position, group in zip(active, groups, strict=True):
            (rollout,) = group.rollouts
            banks[position] = rollout.bank
            answered = [sample for sample in rollout.samples.values() if sample.completion is not None]
            num_outputs[position] += len(answered)
            num_valid[position] += sum(sample.failure is None for sample in answered)
            num_too_long[position] += len(rollout.samples) - len(answered)
    return BuiltBanks(banks=banks, num_outputs=num_outputs, num_valid=num_valid, num_too_long=num_too_long)


@dataclass(frozen=True, kw_only=True, slots=True)
class DialogueScores:
    """What the questions found in one dialogue's final bank."""

    verdicts: list[float]
    """Of the questions that could be judged, each from 0 to 1."""
    recalls: list[float]
    memory_tokens: int
    num_outputs: int
    num_valid: int
    num_too_long: int


def tally(dialogues: Sequence[Dialogue], built: BuiltBanks, collector: Collector) -> list[DialogueScores]:
    """Put every answerable question with evidence to the final banks."""
    tasks = [
        (bank, [question for question in dialogue.questions if question.answerable and question.evidence])
        for dialogue, bank in zip(dialogues, built.banks, strict=True)
    ]
    answers = answer_banks(tasks, collector.scheme, collector.embedder, collector.judge, collector.reward.top_k)
    return [
        DialogueScores(
            verdicts=[verdict.correct for verdict in answer.verdicts if verdict.correct is not None],
            recalls=_recalls(task, answer),
            memory_tokens=collector.count_tokens(task[0].memory_text()),
            num_outputs=num_outputs,
            num_valid=num_valid,
            num_too_long=num_too_long,
        )
        for task, answer, num_outputs, num_valid, num_too_long in zip(
            tasks, answers, built.num_outputs, built.num_valid, built.num_too_long, strict=True
        )
    ]


def summarize(tallies: Sequence[DialogueScores]) -> SystemResult:
    verdicts = [verdict for each in tallies for verdict in each.verdicts]
    recalls = [recall for each in tallies for recall in each.recalls]
    num_outputs = sum(each.num_outputs for each in tallies)
    num_too_long = sum(each.num_too_long for each in tallies)
    return SystemResult(
        accuracy=sum(verdicts) / len(verdicts) if verdicts else None,
        recall_at_10=sum(recalls) / len(recalls),
        memory_tokens=sum(each.memory_tokens for each in tallies) / len(tallies),
        format_valid=sum(each.num_valid for each in tallies) / num_outputs if num_outputs else None,
        questions=len(recalls),
        prompt_too_long=num_too_long / (num_outputs + num_too_long),
    )


def _recalls(task: tuple[Bank, list], answer: QAResult) -> list[float]:
    bank, questions = task
    return [
        recall(set(question.evidence), _sources(bank, retrieval)).mean
        for question, retrieval in zip(questions, answer.retrievals, strict=True)
    ]


def _sources(bank: Bank, retrieval) -> set[str]:
    return {turn for entry in retrieval.entries for turn in entry.source_turns}.union(bank.core_sources)


def baseline_built(dialogues: Sequence[Dialogue], banks: Sequence[Bank], num_roles: int) -> BuiltBanks:
    """Banks made without a model: nothing can be ill-formed."""
    counts = [len(dialogue.sessions) * num_roles for dialogue in dialogues]
    return BuiltBanks(banks=list(banks), num_outputs=counts, num_valid=counts, num_too_long=[0] * len(counts))


def compare_baselines(held_out: Sequence[ExpertBuild], collector: Collector) -> dict[str, SystemResult]:
    """Systems without a model: `random` and `longest` keep to what the rules wrote in each dialogue."""

    def within(order: Callable[[Dialogue], list[Turn]]) -> Callable[[ExpertBuild], Bank]:
        return lambda build: store_within(
            build.dialogue, order(build.dialogue), _budget(build, collector), collector.count_tokens
        )

    systems: dict[str, Callable[[ExpertBuild], Bank]] = {
        "empty": lambda build: Bank(),
        "random": within(random_turns),
        "longest": within(longest_turns),
        "rules": lambda build: build.steps[-1].result.bank,
        "all": lambda build: store_all(build.dialogue),
    }
    bar = progress(
        systems.items(), label="baselines build and are asked", unit="system", enabled=collector.world.rank == 0
    )
    return {
        name: judge_built(
            held_out,
            lambda builds, make=make: baseline_built(
                _dialogues(builds), [make(build) for build in builds], len(collector.scheme.roles)
            ),
            collector,
        )
        for name, make in bar
    }


def judge_policy(held_out: Sequence[ExpertBuild], collector: Collector, name: str) -> SystemResult:
    """Held-out accuracy of whatever model the collector's engine holds."""
    label = f"{name} builds the held-out banks"
    return judge_built(held_out, lambda builds: build_with_policy(_dialogues(builds), collector, label), collector)


def judge_built(
    held_out: Sequence[ExpertBuild], make: Callable[[list[ExpertBuild]], BuiltBanks], collector: Collector
) -> SystemResult:
    """Each process builds and judges its share of the dialogues; all get the result over all."""
    mine = collector.world.shard([len(build.steps) for build in held_out])
    builds = [held_out[index] for index in mine]
    tallies = tally(_dialogues(builds), make(builds), collector)
    return summarize(collector.world.gather_in_order(mine, tallies))


def _dialogues(builds: Sequence[ExpertBuild]) -> list[Dialogue]:
    return [build.dialogue for build in builds]


def _budget(build: ExpertBuild, collector: Collector) -> int:
    return collector.count_tokens(build.steps[-1].result.bank.memory_text())

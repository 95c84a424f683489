"""The same questions and the same retrieval for every way of building memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from membuilder.build import shown_entries
from membuilder.embed import TextEmbedder
from membuilder.progress import progress
from membuilder.types import Agent, Bank, Dialogue
from reward.judges import Judge
from reward.qa import QAResult, answer_banks
from rollout.sampler import Task, sample_groups
from trainer.collect import Collector


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """Final banks of one system, one per dialogue, and how many of its answers were usable."""

    banks: list[Bank]
    num_outputs: int
    num_valid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemResult:
    accuracy: float | None
    """Share of the questions that the judge calls answered; None if none could be judged."""
    recall_at_10: float
    """Mean share of a question's evidence turns that stand in the core or the ten retrieved entries."""
    memory_tokens: float
    """Mean tokens of a dialogue's final bank, of memory text only."""
    format_valid: float
    questions: int

    def metrics(self) -> dict[str, float]:
        """What a training run logs of it."""
        values = {
            "eval/accuracy": self.accuracy,
            "eval/recall_at_10": self.recall_at_10,
            "eval/memory_tokens": self.memory_tokens,
            "eval/format_valid": self.format_valid,
        }
        return {name: value for name, value in values.items() if value is not None}


def build_with_policy(dialogues: Sequence[Dialogue], collector: Collector, label: str) -> Built:
    """Greedy decoding, all dialogues side by side, each session from the bank the policy itself built."""
    banks = [Bank()] * len(dialogues)
    num_outputs = num_valid = 0
    for index in progress(range(max(len(d.sessions) for d in dialogues)), label=label, unit="session"):
        active = [position for position, dialogue in enumerate(dialogues) if index < len(dialogue.sessions)]
        tasks = [_task(dialogues[position], index, banks[position], collector) for position in active]
        groups = sample_groups(
            tasks, collector.engine, collector.tokenizer, collector.prompts, collector.greedy, 1, seed=0
        )
        for position, group in zip(active, groups, strict=True):
            (rollout,) = group.rollouts
            banks[position] = rollout.bank
            num_outputs += len(rollout.samples)
            num_valid += sum(sample.failure is None for sample in rollout.samples.values())
    return Built(banks=banks, num_outputs=num_outputs, num_valid=num_valid)


def _task(dialogue: Dialogue, index: int, bank: Bank, collector: Collector) -> Task:
    session = dialogue.sessions[index]
    shown = shown_entries(session, bank, collector.embedder, collector.prompts)
    return Task(id=f"{dialogue.id}/{index}", dialogue_id=dialogue.id, session=session, bank=bank, shown=shown)


def evaluate(
    dialogues: Sequence[Dialogue],
    built: Built,
    embedder: TextEmbedder,
    judge: Judge,
    count_tokens: Callable[[Sequence[str]], int],
    top_k: int = 10,
    include_superseded: bool = True,
) -> SystemResult:
    """Put every answerable question with evidence to the final banks."""
    tasks = [
        (bank, [question for question in dialogue.questions if question.answerable and question.evidence])
        for dialogue, bank in zip(dialogues, built.banks, strict=True)
    ]
    answers = answer_banks(tasks, embedder, judge, top_k, include_superseded)
    verdicts = [verdict.correct for answer in answers for verdict in answer.verdicts if verdict.correct is not None]
    recalls = [recall for task, answer in zip(tasks, answers, strict=True) for recall in _recalls(task, answer)]
    tokens = [count_tokens(bank.memory_text()) for bank in built.banks]
    return SystemResult(
        accuracy=sum(verdicts) / len(verdicts) if verdicts else None,
        recall_at_10=sum(recalls) / len(recalls),
        memory_tokens=sum(tokens) / len(tokens),
        format_valid=built.num_valid / built.num_outputs,
        questions=len(recalls),
    )


def _recalls(task: tuple[Bank, list], answer: QAResult) -> list[float]:
    bank, questions = task
    return [
        len(set(question.evidence) & _sources(bank, retrieval)) / len(set(question.evidence))
        for question, retrieval in zip(questions, answer.retrievals, strict=True)
    ]


def _sources(bank: Bank, retrieval) -> set[str]:
    return {turn for entry in retrieval.entries for turn in entry.source_turns}.union(bank.core_sources)


def baseline_built(dialogues: Sequence[Dialogue], banks: Mapping[str, Bank]) -> Built:
    """Banks made without a model: nothing can be ill-formed."""
    count = sum(len(dialogue.sessions) for dialogue in dialogues) * len(Agent)
    return Built(banks=[banks[dialogue.id] for dialogue in dialogues], num_outputs=count, num_valid=count)

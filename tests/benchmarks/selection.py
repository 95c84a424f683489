"""How well can turns be chosen on LoCoMo by whoever has seen four conversations' evidence? The ceiling of real_model.

    python -m tests.benchmarks.selection --data locomo10.json       # writes results/selection.json

A policy of the `turns` format chooses which turns to keep. RL learns that choice from verdicts; here a logistic
regression over MiniLM's vectors is given the answer itself, whether a turn of the training conversations is evidence.
It keeps its highest turns of the held-out conversations, as many tokens as the rules wrote there. Both of its numbers
(regularisation, how much the rules' own choice counts) are chosen by leaving out one training conversation after the
other. `evidence` keeps the evidence itself first: what no choice of turns can pass with this retrieval.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from membuilder.bank.retrieve import retrieve
from membuilder.building.baselines import random_turns, store_all, store_within
from membuilder.datasets.load import load
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import Embedder
from membuilder.evaluation.intervals import paired
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import build
from membuilder.types import Bank, Dialogue, Turn
from reward.rollouts import episode_questions
from reward.score import RewardConfig
from rollout.tokens import TokenCounter, load_tokenizer
from tests.benchmarks.common import write
from tests.benchmarks.real_model import HELD_OUT, TRAIN

RESULTS = Path(__file__).parent / "results" / "selection.json"
MAX_TURNS = 3
REGULARISATIONS = (0.003, 0.03, 0.3, 3.0)
BONUSES = (0.0, 0.5, 1.0, 2.0)
"""Added to the log-odds of a turn that the rules keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    dialogue: Dialogue
    rules: Bank
    turns: list[Turn]
    features: np.ndarray  # (T, D + 1)
    is_evidence: np.ndarray  # (T,)
    by_rules: np.ndarray  # (T,)


class Bench:
    """What all systems share: the embedder that searches, the scheme whose rules set the budget, the unit of length."""

    def __init__(self, count: Callable[[Sequence[str]], int]) -> None:
        self.embedder = Embedder()
        self.scheme = FourAgents(PromptConfig(template_set="compact", response_format="turns", entries_shown=0))
        self.count = count

    def conversation(self, dialogue: Dialogue) -> Conversation:
        """Return a conversation with the features of its turns, in windows as the policy reads it."""
        dialogue = in_windows(dialogue, MAX_TURNS)
        *_, last = build(dialogue, self.scheme.expert, self.scheme, self.embedder)
        turns = [turn for session in dialogue.sessions for turn in session.turns]
        wanted = {
            turn_id for question in episode_questions(dialogue, RewardConfig(), "") for turn_id in question.evidence
        }
        kept = {turn_id for entry in last.result.bank.entries for turn_id in entry.source_turns}
        vectors = self.embedder.embed([turn.content for turn in turns])
        lengths = np.log([[1 + len(turn.content)] for turn in turns])
        return Conversation(
            dialogue=dialogue,
            rules=last.result.bank,
            turns=turns,
            features=np.hstack([3 * vectors, lengths - 4]),
            is_evidence=np.array([turn.id in wanted for turn in turns]),
            by_rules=np.array([turn.id in kept for turn in turns], dtype=float),
        )

    def within_budget(self, conversation: Conversation, scores: np.ndarray) -> Bank:
        """Keep the turns of the highest scores, in as many tokens as the rules wrote."""
        order = [conversation.turns[number] for number in np.argsort(-scores, kind="stable")]
        return store_within(conversation.dialogue, order, self.tokens(conversation.rules), self.count)

    def verdicts(self, conversation: Conversation, bank: Bank) -> list[bool]:
        """Tell of each question whether all of its evidence is among what it finds, as the judge `evidence` does."""
        questions = episode_questions(conversation.dialogue, RewardConfig(), "")
        found = retrieve(bank, [question.text for question in questions], self.embedder, 10)
        sources = [{turn for entry in each.entries for turn in entry.source_turns} for each in found]
        pairs = zip(questions, sources, strict=True)
        return [set(question.evidence) <= own | set(bank.core_sources) for question, own in pairs]

    def tokens(self, bank: Bank) -> int:
        return self.count(bank.memory_text())


def fitted(train: Sequence[Conversation], regularisation: float) -> LogisticRegression:
    """Fit a turn's log-odds of being evidence."""
    features, labels = (np.concatenate([getattr(each, name) for each in train]) for name in ("features", "is_evidence"))
    return LogisticRegression(C=regularisation, max_iter=5000).fit(features, labels)


def chosen(bench: Bench, train: Sequence[Conversation], bonuses: Sequence[float]) -> dict[str, float]:
    """Return the numbers that do best where one training conversation after the other is left out."""
    accuracy = {}
    for regularisation in REGULARISATIONS:
        models = [fitted([*train[:k], *train[k + 1 :]], regularisation) for k in range(len(train))]
        for bonus in bonuses:
            right = []
            for model, left_out in zip(models, train, strict=True):
                scores = model.decision_function(left_out.features) + bonus * left_out.by_rules
                right += bench.verdicts(left_out, bench.within_budget(left_out, scores))
            accuracy[regularisation, bonus] = np.mean(right)
    best = max(accuracy, key=accuracy.__getitem__)
    return {"regularisation": best[0], "bonus": best[1], "left_out_accuracy": float(accuracy[best])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="locomo10.json")
    parser.add_argument("--tokenizer", required=True, help="folder of the policy, whose tokens are counted")
    given = parser.parse_args()
    bench = Bench(TokenCounter(load_tokenizer(given.tokenizer)))
    dialogues = {each.id: each for each in load(given.data)}
    train, held_out = ([bench.conversation(dialogues[name]) for name in names] for names in (TRAIN, HELD_OUT))
    rng = np.random.default_rng(1)
    picked = {name: chosen(bench, train, of) for name, of in (("classifier", (0.0,)), ("with the rules", BONUSES))}
    models = {name: fitted(train, of["regularisation"]) for name, of in picked.items()}

    def classified(name: str, each: Conversation) -> Bank:
        scores = models[name].decision_function(each.features) + picked[name]["bonus"] * each.by_rules
        return bench.within_budget(each, scores)

    def at_random(each: Conversation) -> Bank:
        rank = {turn.id: number for number, turn in enumerate(random_turns(each.dialogue))}
        return bench.within_budget(each, -np.array([rank[turn.id] for turn in each.turns], dtype=float))

    systems: Mapping[str, Callable[[Conversation], Bank]] = {
        "random": at_random,
        "classifier": lambda each: classified("classifier", each),
        "rules": lambda each: each.rules,
        "classifier with the rules": lambda each: classified("with the rules", each),
        "every turn": lambda each: store_all(each.dialogue),
        "evidence": lambda each: bench.within_budget(each, each.is_evidence + rng.random(len(each.turns)) / 2),
    }
    rows = {}
    for name, make in systems.items():
        banks = [make(each) for each in held_out]
        right = [bench.verdicts(*pair) for pair in zip(held_out, banks, strict=True)]
        verdicts = np.array(list(itertools.chain(*right)), dtype=float)
        rows[name] = {"verdicts": verdicts, "memory_tokens": float(np.mean([bench.tokens(bank) for bank in banks]))}
    table = [
        {
            "system": name,
            "accuracy": float(row["verdicts"].mean()),
            "memory_tokens": row["memory_tokens"],
            "over_rules": paired(rows["rules"]["verdicts"], row["verdicts"], seed=1)._asdict(),
        }
        for name, row in rows.items()
    ]
    turns = {side: sum(len(each.turns) for each in of) for side, of in (("train", train), ("held_out", held_out))}
    write(RESULTS, [{"turns": turns, "chosen": picked, "systems": table}])
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

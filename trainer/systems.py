"""Every way of building memory that a run compares, by name."""

from collections.abc import Callable, Sequence

from membuilder.baselines import longest_turns, random_turns, store_all, store_within
from membuilder.types import Bank, Session
from trainer.collect import Collector
from trainer.corpus import ExpertBuild
from trainer.evaluate import Built, SystemResult, baseline_built, evaluate


def compare_baselines(held_out: Sequence[ExpertBuild], collector: Collector) -> dict[str, SystemResult]:
    """Systems without a model: `random` and `longest` keep to what the rules wrote in each session."""

    def within(order: Callable[[Session], list[int]]) -> Callable[[ExpertBuild], Bank]:
        return lambda build: store_within(build.dialogue, order, _budgets(build, collector), collector.count_tokens)

    systems: dict[str, Callable[[ExpertBuild], Bank]] = {
        "empty": lambda build: Bank(),
        "random": within(random_turns),
        "longest": within(longest_turns),
        "rules": lambda build: build.steps[-1].result.bank,
        "all": lambda build: store_all(build.dialogue),
    }
    dialogues = [build.dialogue for build in held_out]
    return {
        name: judge_built(
            held_out, baseline_built(dialogues, {build.dialogue.id: make(build) for build in held_out}), collector
        )
        for name, make in systems.items()
    }


def judge_built(held_out: Sequence[ExpertBuild], built: Built, collector: Collector) -> SystemResult:
    return evaluate(
        [build.dialogue for build in held_out],
        built,
        collector.embedder,
        collector.judge,
        collector.count_tokens,
        collector.reward.top_k,
        collector.reward.include_superseded,
    )


def _budgets(build: ExpertBuild, collector: Collector) -> list[int]:
    return [sum(tokens.values()) for tokens in build.tokens_written(collector.count_tokens)]

"""Every way of building memory that a run compares, by name."""

from collections.abc import Callable, Sequence

from membuilder.baselines import longest_turns, random_turns, store_all, store_within
from membuilder.types import Bank, Dialogue, Turn
from trainer.collect import Collector
from trainer.corpus import ExpertBuild
from trainer.evaluate import Built, SystemResult, baseline_built, build_with_policy, evaluate


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
    dialogues = [build.dialogue for build in held_out]
    return {
        name: judge_built(
            held_out, baseline_built(dialogues, {build.dialogue.id: make(build) for build in held_out}), collector
        )
        for name, make in systems.items()
    }


def judge_policy(held_out: Sequence[ExpertBuild], collector: Collector, name: str) -> SystemResult:
    """Held-out accuracy of whatever model the collector's engine holds."""
    dialogues = [build.dialogue for build in held_out]
    return judge_built(
        held_out, build_with_policy(dialogues, collector, f"{name} builds the held-out banks"), collector
    )


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


def _budget(build: ExpertBuild, collector: Collector) -> int:
    return collector.count_tokens(build.steps[-1].result.bank.memory_text())

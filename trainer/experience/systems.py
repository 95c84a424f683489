"""Every way of building memory that a run compares, by name."""

from collections.abc import Callable, Sequence

from membuilder.building.baselines import longest_turns, random_turns, store_all, store_within
from membuilder.progress import progress
from membuilder.types import Bank, Dialogue, Turn
from trainer.data.corpus import ExpertBuild
from trainer.experience.collector import Collector
from trainer.experience.evaluate import BuiltBanks, SystemResult, baseline_built, build_with_policy, summarize, tally


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
            lambda builds, make=make: baseline_built(_dialogues(builds), [make(build) for build in builds]),
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

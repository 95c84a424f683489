"""What a role says about one session, answer by answer, as a model would have written it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from membuilder.schemes.scheme import EndsTurns, Message, Scheme, Step, TakesTurns
from membuilder.types import AgentUpdate, Operation


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterAnswer:
    """What a role answered in a further turn about the same session."""

    told: tuple[Message, ...]
    """What it was told before, such as the results of its calls."""
    completion: str


def answers(scheme: Scheme, role: str, update: AgentUpdate, step: Step) -> tuple[str, tuple[LaterAnswer, ...]]:
    """Return what the role writes for an update of the step: the first answer, and the later ones.

    Of a scheme of several turns each later answer stands behind what the role was told, and where the scheme has an
    ending the last one is that. Of one turn there is one answer.
    """
    turns = _by_turn(update.operations)
    later: list[LaterAnswer] = []
    bank = step.bank_before
    for turn, asked in enumerate(turns[: scheme.max_turns - 1] if isinstance(scheme, TakesTurns) else []):
        alone = dict.fromkeys(scheme.roles, AgentUpdate()) | {role: asked}
        result = scheme.apply(step.session, bank, alone, step.shown)
        told, bank = result.more.get(role, ()), result.bank
        is_last = turn + 1 == len(turns)
        if not told or (is_last and not isinstance(scheme, EndsTurns)):
            break
        said = scheme.ending(role) if is_last else scheme.write(role, turns[turn + 1], step.session, step.shown)
        later.append(LaterAnswer(told=tuple(told), completion=said))
    return scheme.write(role, turns[0], step.session, step.shown), tuple(later)


def _by_turn(operations: Iterable[Operation]) -> list[AgentUpdate]:
    """Return what each answer asked for, at least one."""
    turns = [tuple(asked) for _, asked in groupby(operations, key=lambda each: each.turn)]
    return [AgentUpdate(operations=asked) for asked in turns] or [AgentUpdate()]

"""One role of a scheme asked about one session, by a language model: several attempts at an answer, several turns."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from membuilder.bank.store_rows import Answer, Reason
from membuilder.building.read_answer import OnBadOperation, ReadAnswer, read_operations, read_whole
from membuilder.errors import ChatError
from membuilder.llm.chat_model import ChatModel
from membuilder.schemes.scheme import Message, Prompt, Scheme, Shown, TakesTurns, messages_of
from membuilder.types import AgentUpdate, Bank, Session

ATTEMPTS = 2
"""Times a role is asked while its answer cannot be read, or as `OnBadOperation.RETRY` says."""


class Turn(NamedTuple):
    """One answer of a role, as it was read, or why there is none."""

    text: str | None
    read: ReadAnswer
    failure: Reason | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleAsker:
    """It asks a model in any role of a scheme."""

    model: ChatModel
    scheme: Scheme
    on_bad: OnBadOperation

    async def ask(self, role: str, session: Session, bank: Bank, shown: Shown) -> tuple[AgentUpdate, Answer]:
        """Return what the role wants to change, in all its turns, and what the store keeps of its answer.

        Raises a ChatError that is not the model's fault.
        """
        asked_at, began = datetime.now(UTC), time.perf_counter()
        prompt = self.scheme.ask(role, session, bank, shown)
        messages, turns = messages_of(prompt), []
        for _ in range(self.scheme.max_turns if isinstance(self.scheme, TakesTurns) else 1):
            turns.append(await self._turn(role, prompt, messages, session, bank, shown))
            text, read, _ = turns[-1]
            if text is None or read.alone is None or role not in read.alone.more:
                break
            messages += [{"role": "assistant", "content": text}, *read.alone.more[role]]
            bank = read.alone.bank
        usable = [turn for turn in turns if turn.read.stands] or turns[:1]
        first, said = usable[0], [turn.text for turn in turns if turn.text is not None]
        asked_for = [turn.read.update.operations for turn in usable if turn.read.update.operations]
        operations = tuple(replace(each, turn=n or None) for n, asked in enumerate(asked_for) for each in asked)
        return replace(first.read.update, operations=operations), Answer(
            text="\n".join(said) if said else None,
            operations=operations,
            failure=first.failure,
            dropped=tuple(each for turn in turns for each in turn.read.problems) if first.read.stands else (),
            seconds=time.perf_counter() - began,
            asked_at=asked_at,
        )

    async def _turn(
        self, role: str, prompt: str | Prompt, messages: list[Message], session: Session, bank: Bank, shown: Shown
    ) -> Turn:
        """Ask once, and once more where that helps; `messages` grows by what was said in between."""
        tools = () if isinstance(prompt, str) else prompt.tools
        asked = {"tools": tools} if tools else {"schema": self.scheme.schema(role, session)}
        text, read, failure = None, ReadAnswer(update=AgentUpdate(), stands=False), None
        try:
            for _ in range(ATTEMPTS):
                said = await self.model.complete(messages, **asked)
                new = read_operations(self.scheme, role, said, session, bank, shown)
                if self.on_bad is OnBadOperation.DROP:
                    new = replace(read_whole(self.scheme, role, said, session), alone=new.alone)
                if new.stands or not read.stands:  # a second answer that is no use leaves the first
                    text, read = said, new
                if not (new.is_unreadable or (self.on_bad is OnBadOperation.RETRY and new.problems)):
                    break
                # the longer conversation is another request, so neither a cache nor a temperature of 0 repeats it
                messages += [{"role": "assistant", "content": said}, {"role": "user", "content": new.complaint()}]
        except ChatError as error:
            if not error.models_fault:
                raise
            failure = None if read.stands else Reason(kind=f"chat_{error.kind}", detail=str(error))
        return Turn(text, read, failure)

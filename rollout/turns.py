"""What becomes of sampled answers: they are read and applied together, and some roles go on with the same session.

The next prompt of a role that goes on is its ids so far and those of what it is told: nothing is rendered again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
from transformers import PreTrainedTokenizerBase

from membuilder.errors import ConfigError
from membuilder.schemes.scheme import Call, Message, ReadsCutAnswers, Scheme, SessionResult, Shown, TakesTurns, marks_of
from membuilder.types import AgentUpdate, Bank, Failure, FailureKind, Session
from rollout.thinking import Answered
from rollout.tokens import encode_more
from rollout.types import LaterTurn, Rollout, Sample, Trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One session to be sampled from one bank."""

    id: str
    dialogue_id: str
    session: Session
    bank: Bank
    shown: Shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a role reads before it goes on."""

    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    """Its whole next prompt, which ends with them."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Reads the answers of one turn after another, as a scheme does."""

    tokenizer: PreTrainedTokenizerBase
    scheme: Scheme
    room: int
    """Longest prompt that leaves the engine room for an answer."""

    def first(
        self, task: Task, prompts: Mapping[str, list[int]], drawn: Mapping[str, Answered]
    ) -> tuple[Rollout, dict[str, Told]]:
        """Apply the roles' first answers; `drawn` lacks the roles whose prompts are too long. Return who goes on."""
        texts, updates = {}, {}
        for role in self.scheme.roles:
            if role in drawn:
                texts[role] = drawn[role].text(self.tokenizer, marks_of(self.scheme))
                updates[role] = self._read(role, drawn[role], texts[role], task.session)
            else:
                problem = f"the prompt's {len(prompts[role])} tokens leave no room for an answer within max_model_len"
                updates[role] = _failed(FailureKind.PROMPT_TOO_LONG, problem)
        result = self.scheme.apply(task.session, task.bank, updates, task.shown)
        samples = {
            role: Sample(
                prompt_token_ids=tuple(prompts[role]),
                completion=drawn[role].first if role in drawn else None,
                text=texts.get(role),
                written=result.written[role],
                failure=result.failures.get(role),
                calls=_kept(result.calls.get(role, ())),
                later=_rest(drawn[role]) if role in drawn else (),
            )
            for role in self.scheme.roles
        }
        return Rollout(samples=samples, bank=result.bank), self._told(samples, result)

    def next(
        self, task: Task, rollout: Rollout, told: Mapping[str, Told], drawn: Mapping[str, Answered]
    ) -> tuple[Rollout, dict[str, Told]]:
        """Apply the answers of the roles that went on to the bank as it stands, and return who goes on again."""
        texts = {role: answer.text(self.tokenizer, marks_of(self.scheme)) for role, answer in drawn.items()}
        updates = dict.fromkeys(self.scheme.roles, AgentUpdate())
        updates |= {role: self._read(role, drawn[role], text, task.session) for role, text in texts.items()}
        result = self.scheme.apply(task.session, rollout.bank, updates, task.shown)
        samples = dict(rollout.samples)
        for role, text in texts.items():
            before, failure = samples[role], result.failures.get(role)
            ids = told[role].token_ids
            turn = LaterTurn(told_token_ids=ids, completion=drawn[role].first.behind(ids), text=text)
            samples[role] = replace(
                before,
                written=before.written + result.written[role],
                failure=None if before.failure is None else failure,  # it failed where no turn could be used
                calls=before.calls + _kept(result.calls.get(role, ())),
                later=(*before.later, turn, *_rest(drawn[role])),
            )
        return Rollout(samples=samples, bank=result.bank), self._told(samples, result)

    def _read(self, role: str, answer: Answered, text: str, session: Session) -> AgentUpdate:
        last = answer.rest or answer.first
        if last.finished:
            return self.scheme.parse(role, text, session)
        if isinstance(self.scheme, ReadsCutAnswers):
            update = self.scheme.parse_cut(role, text, session)
            if update != AgentUpdate():
                return update
        return _failed(FailureKind.TRUNCATED, f"no end token within {len(last.token_ids)} tokens")

    def _told(self, samples: Mapping[str, Sample], result: SessionResult) -> dict[str, Told]:
        """Return what each role is told that goes on: not behind its last turn, nor where no room is left."""
        if result.more and not isinstance(self.scheme, TakesTurns):
            raise ConfigError(
                f"scheme '{self.scheme.name}': apply returns `more`, but the scheme has no max_turns, which says how "
                "often a role may answer to one session (TakesTurns in membuilder/schemes/scheme.py)"
            )
        found = {}
        for role, messages in result.more.items():
            sample = samples[role]
            if messages and 0 < sample.num_turns < self.scheme.max_turns:
                told = self._behind(sample.turns()[-1], messages)
                if len(told.prompt_token_ids) <= self.room:
                    found[role] = told
        return found

    def _behind(self, turn: Trained, messages: tuple[Message, ...]) -> Told:
        prompt, completion, _ = turn
        ids = tuple(encode_more(self.tokenizer, completion, messages))
        return Told(token_ids=ids, prompt_token_ids=(*prompt, *completion.token_ids, *ids))


def _rest(answer: Answered) -> tuple[LaterTurn, ...]:
    if answer.rest is None:
        return ()
    rest = answer.rest.behind(answer.closing)
    return (LaterTurn(told_token_ids=answer.closing, completion=rest, text="", is_rest=True),)


def _kept(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """Return calls as the journal can keep them: without arguments that JSON would not give back, such as 1e999."""
    return tuple(call if _comes_back(call.arguments) else replace(call, arguments={}) for call in calls)


def _comes_back(arguments: dict) -> bool:
    try:
        return msgspec.json.decode(msgspec.json.encode(arguments)) == arguments
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, RecursionError):
        return False  # half a character, a number of more than 64 bits, a thousand levels


def _failed(kind: FailureKind, detail: str) -> AgentUpdate:
    return AgentUpdate(failure=Failure(kind=kind, detail=detail))

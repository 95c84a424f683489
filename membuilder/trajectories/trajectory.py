"""Keeps an expert's building of one dialogue as a folder, in the published layout, beside its store.

    SAMPLE/memory.db                  the durable store, from which a stopped build goes on
    SAMPLE/states/state_0 ... state_N the memory before session 0, ..., after the last one
    SAMPLE/agent_calls.jsonl          a line for each agent and session
    SAMPLE/metadata.json              written last: a folder without it is not whole, and no command takes it

Paths inside are relative to SAMPLE. Fields beyond the published ones: `content` and its like in a core answer (what the
operation says; `new_core_memory` is the whole core after it), `failure`, `dropped_operations`, and ids of entries and
turns. Entries are embedded without the `[EPISODIC]` that the published payload puts before their text. Fields we have
no value for are null.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from membuilder.bank.store import Store, reading
from membuilder.bank.store_rows import Answer
from membuilder.datasets.files import FILE, read_json, read_lines
from membuilder.datasets.typed import typed
from membuilder.errors import DataError, StoreError
from membuilder.files import durable_rename, fsync_tree, path_of, write_atomic
from membuilder.schemes.four_agents.apply import apply_session
from membuilder.schemes.four_agents.operations import render
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt, template_hashes
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.load import FOUR_AGENTS
from membuilder.schemes.scheme import Step
from membuilder.types import ENTRY_AGENTS, Agent, AgentUpdate, Bank, Session

if TYPE_CHECKING:
    from membuilder.bank.index import VectorIndex

T = TypeVar("T")
STORE_FILE, CALLS_FILE, METADATA_FILE, STATES = "memory.db", "agent_calls.jsonl", "metadata.json", "states"
QA_FILE = "rl_training_data.jsonl"
"""The questions that membuilder.qa writes into the folder."""
INDEX_FILE, PAYLOAD_FILE, CORE_FILE = "vector_store/index.faiss", "vector_store/payload.json", "core_memory.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertStep:
    """One session of an expert's building."""

    step: Step
    """An agent whose answer failed has no operations here."""
    answers: Mapping[Agent, Answer]
    """Empty for a session without turns, about which nobody is asked."""

    @property
    def usable(self) -> tuple[Agent, ...]:
        """Return the agents whose answer was parsed and applied: all that is training data."""
        return tuple(agent for agent, answer in self.answers.items() if answer.failure is None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    dialogue: str
    speakers: tuple[str, ...]
    expert: str
    temperature: float | None
    prompts: PromptConfig
    steps: tuple[ExpertStep, ...]

    def prompt(self, number: int, agent: Agent) -> str:
        """Return what the agent was asked about session `number`."""
        step = self.steps[number].step
        return render_prompt(agent, step.session, step.bank_before, step.shown[agent], self.prompts)

    def target(self, number: int, agent: Agent, response_format: ResponseFormat | None = None) -> str:
        """Return the operations the agent answered, as text: for the core what is appended, not the core after it."""
        step = self.steps[number].step
        fmt = response_format or self.prompts.response_format
        return render(step.updates[agent], agent, len(step.session.turns), step.shown[agent], fmt)


def sample_folder(output: Path, dialogue_id: str) -> Path:
    return path_of(output, dialogue_id)


def sample_folders(folder: Path) -> list[Path]:
    """Return whole trajectories at `folder`, `folder`/SAMPLE or `folder`/DATASET/SAMPLE; DataError if there is none."""
    found = sorted({path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(depth + METADATA_FILE)})
    if not found:
        others = f", but {number} that are not" if (number := len(unfinished_folders(folder))) else ""
        problem = f"holds no whole trajectory{others}; make one with `python -m membuilder.expert`"
        raise DataError(folder, FILE, METADATA_FILE, problem)
    return found


def unfinished_folders(folder: Path) -> list[Path]:
    """Return the samples at `folder` that are not whole: still being built, or with too many failed answers."""
    stores = {path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(depth + STORE_FILE)}
    return sorted(path for path in stores if not (path / METADATA_FILE).exists())


def read_trajectory(store: Store) -> Trajectory:
    """Read a store session by session. The stored operations, applied once more, must give the stored bank."""
    settings, sessions, last = store.settings(), store.sessions(), store.bank()
    if settings["scheme"] != FOUR_AGENTS:
        problem = (
            f"was built by scheme {settings['scheme']!r}, but the published formats have the roles of {FOUR_AGENTS}"
        )
        advice = "build it anew with membuilder.expert, or train on the dialogues themselves (data.path of trainer.rl)"
        raise StoreError(store.path, f"{problem}; {advice}")
    prompts = msgspec.convert(settings["prompts"], PromptConfig)
    if settings["templates_sha256"] != template_hashes(prompts.template_set):
        problem = f"its agents read other templates than today's {prompts.template_set!r}"
        raise StoreError(store.path, f"{problem}; take those back, or build anew")
    entries = {entry.id: entry for entry in last.entries}
    bank, steps = Bank(), []
    for stored in sessions:
        updates, shown = dict.fromkeys(Agent, AgentUpdate()), dict.fromkeys(Agent, ())
        answers = {Agent(role): answer for role, answer in stored.answers.items()}
        for agent, answer in answers.items():
            shown[agent] = tuple(entries[each] for each in answer.shown)
            if answer.failure is None:
                updates[agent] = AgentUpdate(operations=answer.operations)
        result = apply_session(bank, stored.session, updates, shown, prompts.core_limit_chars)
        if result.failures or result.bank.core != stored.core:
            problem = f"the answers about session {stored.session.id} do not give the bank stored for it; build anew"
            raise StoreError(store.path, problem)
        step = Step(session=stored.session, bank_before=bank, shown=shown, updates=updates, result=result)
        steps.append(ExpertStep(step=step, answers=answers))
        bank = result.bank
    if bank != last:
        problem = "its answers do not give the bank stored with them; build anew"
        raise StoreError(store.path, problem)
    return Trajectory(
        dialogue=settings["dialogue"],
        speakers=tuple(settings["speakers"]),
        expert=settings["model"],
        temperature=settings["temperature"],
        prompts=prompts,
        steps=tuple(steps),
    )


def publish(folder: Path, store: Store) -> None:
    """Write the published files beside the store. The folder does not pass for whole before the last of them."""
    trajectory, vectors = read_trajectory(store), store.vectors()
    (folder / METADATA_FILE).unlink(missing_ok=True)
    partial = folder / f"{STATES}.part"
    for old in (partial, folder / STATES):
        if old.exists():
            shutil.rmtree(old)
    banks = [Bank(), *(each.step.result.bank for each in trajectory.steps)]
    for number, bank in enumerate(banks):
        _write_state(partial / f"state_{number}", bank, vectors[: len(bank.entries)], trajectory)
    fsync_tree(partial)
    durable_rename(partial, folder / STATES)
    calls = [_call(trajectory, n, agent) for n, each in enumerate(trajectory.steps) for agent in each.answers]
    write_atomic(folder / CALLS_FILE, "".join(json.dumps(call, ensure_ascii=False) + "\n" for call in calls))
    failures = Counter(call["failure"]["kind"] for call in calls if call["failure"] is not None)
    dropped = Counter(each["kind"] for call in calls for each in call["dropped_operations"])
    metadata = {
        "conv_id": trajectory.dialogue,
        "num_sessions": len(trajectory.steps),
        "expert_model": trajectory.expert,
        "total_agent_calls": len(calls),
        "failed_agent_calls": dict(sorted(failures.items())),
        "dropped_operations": dict(sorted(dropped.items())),
    }
    write_atomic(folder / METADATA_FILE, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n")


def is_whole(folder: Path, num_sessions: int, settings: Mapping[str, Any] | None = None) -> bool:
    """Return whether `folder` holds all that `publish` writes for so many sessions, from a store with these settings.

    A file that is missing or cannot be read makes the answer no.
    """
    try:
        said = [_read_field(folder / METADATA_FILE, name, int) for name in ("num_sessions", "total_agent_calls")]
        num_calls = len(read_lines(folder / CALLS_FILE))
        with reading(folder / STORE_FILE) as store:
            begun_with = store.settings()
        for number in range(num_sessions + 1):
            state = folder / STATES / f"state_{number}"
            size = _index_bytes(len(read_state(state)[1]), begun_with["dimension"])
            if (state / INDEX_FILE).stat().st_size != size:
                return False
    except (DataError, StoreError, FileNotFoundError):  # missing or damaged: to be written anew
        return False
    wanted = json.loads(json.dumps(settings or {}))
    is_same = all(begun_with.get(name) == value for name, value in wanted.items())
    return is_same and said == [num_sessions, num_calls]


def _empty_index(dimension: int) -> "VectorIndex":
    # here, because FAISS is slow to load and reading needs none
    from membuilder.bank.index import IndexConfig, IndexKind, VectorIndex

    return VectorIndex(dimension, IndexKind.EXACT, IndexConfig(gpu=False))


def _index_bytes(num_rows: int, dimension: int) -> int:
    """Return the bytes of an exact index: its head and 4 a number. It is not loaded: FAISS trusts what it reads."""
    return len(_empty_index(dimension).to_bytes()) + 4 * num_rows * dimension


def read_state(folder: Path) -> tuple[str, list[str]]:
    """Return (core, memories with their `[EPISODIC]` and the like) of a state folder, ours or the published program's.

    Raises DataError where a file is missing or no such state: a missing memory must not pass for an empty one.
    """
    memories = _read_field(folder / PAYLOAD_FILE, "memories", list[str])
    return _read_field(folder / CORE_FILE, "human", str), memories


def _read_field(path: Path, name: str, kind: type[T]) -> T:
    advice = "write the trajectory anew"
    return typed(kind, typed(dict, read_json(path), path, FILE, advice=advice).get(name), path, FILE, name, advice)


def session_json(session: Session) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": turn.content} for turn in session.turns]
    return {"messages": messages, "timestamp": session.timestamp.isoformat()}


def bank_json(bank: Bank) -> dict[str, Any]:
    """Return the published view of a bank: the core, and the texts of each other agent."""
    texts = {agent.value: [entry.text for entry in bank.entries if entry.agent == agent] for agent in ENTRY_AGENTS}
    return {"core_memory": bank.core, **texts}


def actions_json(trajectory: Trajectory, number: int, agent: Agent) -> dict[str, Any] | None:
    """Return what the agent answered as published operations; None where nothing usable came."""
    if agent not in trajectory.steps[number].usable:
        return None
    return json.loads(trajectory.target(number, agent, ResponseFormat.OPERATIONS))


def _usage_percent(bank: Bank, prompts: PromptConfig) -> float:
    return round(100 * len(bank.core) / prompts.core_limit_chars, 1)


def _write_state(folder: Path, bank: Bank, vectors: np.ndarray, trajectory: Trajectory) -> None:
    (folder / INDEX_FILE).parent.mkdir(parents=True)
    index = _empty_index(vectors.shape[1])
    index.add(vectors)
    index.to_bytes().tofile(folder / INDEX_FILE)
    metadata = [
        {
            "id": entry.id,
            "user_id": trajectory.dialogue,
            "agent": str(entry.agent),
            "session_index": entry.session,
            "timestamp": entry.timestamp.isoformat(),
            "source_turns": list(entry.source_turns),
            "supersedes": list(entry.supersedes),
        }
        for entry in bank.entries
    ]
    memories = [f"[{entry.agent.upper()}] {entry.text}" for entry in bank.entries]
    payload = {"dimension": vectors.shape[1], "memories": memories, "metadata": metadata}
    core = {"human": bank.core, "usage": _usage_percent(bank, trajectory.prompts)}
    for path, content in ((PAYLOAD_FILE, payload), (CORE_FILE, core)):
        (folder / path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _call(trajectory: Trajectory, number: int, agent: Agent) -> dict[str, Any]:
    each = trajectory.steps[number]
    step, answer, prompt = each.step, each.answers[agent], trajectory.prompt(number, agent)
    if agent is Agent.CORE:
        usage = _usage_percent(step.bank_before, trajectory.prompts)
        seen: dict[str, Any] = {"core_memory": step.bank_before.core, "usage_percent": usage}
        after: dict[str, Any] = {"new_core_memory": step.result.bank.core}
    else:
        seen = {"retrieved_memories": [entry.text for entry in step.shown[agent]]}
        after = {"memories_added": [f"[{agent.upper()}] {text}" for text in step.result.written[agent]]}
    actions = actions_json(trajectory, number, agent)
    return {
        "conversation_id": trajectory.dialogue,
        "session_index": number,
        "agent_type": agent.value,
        "call_id": f"{trajectory.dialogue}_session-{number}_{agent}",
        "state_before_path": f"{STATES}/state_{number}",
        "input": {"system_prompt": None, **seen, "new_session": session_json(step.session), "full_prompt": prompt},
        "expert_output": None if actions is None else actions | after,
        "failure": None if answer.failure is None else {"kind": answer.failure.kind, "detail": answer.failure.detail},
        "dropped_operations": msgspec.to_builtins(answer.dropped),
        "metadata": {
            "expert_model": trajectory.expert,
            "temperature": trajectory.temperature,
            "call_time_ms": round(1000 * answer.seconds, 3),
            "timestamp": None if answer.asked_at is None else answer.asked_at.isoformat(timespec="milliseconds"),
        },
    }

"""Writes an expert's building of one dialogue beside its store: of the four agents in the published layout.

    SAMPLE/states/state_0 ... state_N the memory before session 0, ..., after the last one
    SAMPLE/agent_calls.jsonl          a line for each agent and session
    SAMPLE/metadata.json              written last, for every scheme: what it holds and how many answers failed

Paths inside are relative to SAMPLE. Fields beyond the published ones: `content` and its like in a core answer (what the
operation says; `new_core_memory` is the whole core after it), `failure`, `dropped_operations`, and ids of entries and
turns. Entries are embedded without the `[EPISODIC]` that the published payload puts before their text. Fields we have
no value for are null.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from membuilder.bank.store import Store, reading
from membuilder.datasets.files import FILE, read_json, read_lines
from membuilder.datasets.typed import typed
from membuilder.errors import DataError, StoreError
from membuilder.files import durable_rename, fsync_tree, write_atomic
from membuilder.schemes.four_agents.operations import render
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.load import FOUR_AGENTS
from membuilder.schemes.scheme import Scheme, entry_agents
from membuilder.trajectories.trajectory import METADATA_FILE, STORE_FILE, Trajectory, read_trajectory
from membuilder.types import Agent, Bank, Session

if TYPE_CHECKING:
    from membuilder.bank.index import VectorIndex

T = TypeVar("T")
CALLS_FILE, STATES = "agent_calls.jsonl", "states"
INDEX_FILE, PAYLOAD_FILE, CORE_FILE = "vector_store/index.faiss", "vector_store/payload.json", "core_memory.json"


def publish(folder: Path, store: Store) -> None:
    """Write the files beside the store. The folder does not pass for whole before the last of them."""
    trajectory = read_trajectory(store)
    (folder / METADATA_FILE).unlink(missing_ok=True)
    if isinstance(trajectory.scheme, FourAgents):
        _write_layout(folder, trajectory, store.vectors())
    answers = [answer for each in trajectory.steps for answer in each.answers.values()]
    failures = Counter(answer.failure.kind for answer in answers if answer.failure is not None)
    dropped = Counter(each.kind for answer in answers for each in answer.dropped)
    metadata = {
        "conv_id": trajectory.dialogue,
        "num_sessions": len(trajectory.steps),
        "expert_model": trajectory.expert,
        "total_agent_calls": len(answers),
        "failed_agent_calls": dict(sorted(failures.items())),
        "dropped_operations": dict(sorted(dropped.items())),
    }
    if not isinstance(trajectory.scheme, FourAgents):
        metadata["scheme"] = store.settings()["scheme"]
    write_atomic(folder / METADATA_FILE, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n")


def _write_layout(folder: Path, trajectory: Trajectory, vectors: np.ndarray) -> None:
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


def is_whole(folder: Path, num_sessions: int, settings: Mapping[str, Any] | None = None) -> bool:
    """Return whether `folder` holds all that `publish` writes for so many sessions, from a store with these settings.

    A file that is missing or cannot be read makes the answer no.
    """
    try:
        said = [_read_field(folder / METADATA_FILE, name, int) for name in ("num_sessions", "total_agent_calls")]
        with reading(folder / STORE_FILE) as store:
            begun_with = store.settings()
            num_answers = sum(len(stored.answers) for stored in store.sessions())
        if begun_with["scheme"] == FOUR_AGENTS and not _has_layout(
            folder, num_sessions, num_answers, begun_with["dimension"]
        ):
            return False
    except (DataError, StoreError, FileNotFoundError):  # missing or damaged: to be written anew
        return False
    wanted = json.loads(json.dumps(settings or {}))
    is_same = all(begun_with.get(name) == value for name, value in wanted.items())
    return is_same and said == [num_sessions, num_answers]


def _has_layout(folder: Path, num_sessions: int, num_answers: int, dimension: int) -> bool:
    """Return whether the published files are there and as long as they must be. Raises what reading them raises."""
    for number in range(num_sessions + 1):
        state = folder / STATES / f"state_{number}"
        if (state / INDEX_FILE).stat().st_size != _index_bytes(len(read_state(state)[1]), dimension):
            return False
    return len(read_lines(folder / CALLS_FILE)) == num_answers


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


def bank_json(bank: Bank, scheme: Scheme) -> dict[str, Any]:
    """Return the published view of a bank: the core, and the texts of each other part."""
    parts = [part for part in entry_agents(scheme) if part != Agent.CORE]
    texts = {str(part): [entry.text for entry in bank.kept() if entry.agent == part] for part in parts}
    return {"core_memory": bank.core, **texts}


def actions_json(trajectory: Trajectory, number: int, role: str) -> Any:
    """Return what a role answered: of the four agents as published operations, else its text or one text a turn.

    None where nothing usable came.
    """
    each = trajectory.steps[number]
    if role not in each.usable:
        return None
    if not isinstance(trajectory.scheme, FourAgents):
        first, later = trajectory.target(number, role)
        return [first, *(answer.completion for answer in later)] if later else first
    step, shape = each.step, ResponseFormat.OPERATIONS
    return json.loads(render(step.updates[role], Agent(role), len(step.session.turns), step.shown[role], shape))


def _usage_percent(bank: Bank, scheme: FourAgents) -> float:
    return round(100 * len(bank.core) / scheme.prompts.core_limit_chars, 1)


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
    core = {"human": bank.core, "usage": _usage_percent(bank, trajectory.scheme)}
    for path, content in ((PAYLOAD_FILE, payload), (CORE_FILE, core)):
        (folder / path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _call(trajectory: Trajectory, number: int, agent: Agent) -> dict[str, Any]:
    each = trajectory.steps[number]
    step, answer, prompt = each.step, each.answers[agent], trajectory.prompt(number, agent)
    if agent is Agent.CORE:
        usage = _usage_percent(step.bank_before, trajectory.scheme)
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

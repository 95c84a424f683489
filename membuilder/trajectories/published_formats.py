"""Reads and writes the published shapes of training data: LLaMA-Factory's Alpaca records and veRL's grouped rows.

Alpaca: a JSON list of {"instruction": prompt, "input": "", "output": fenced JSON}. Where our records know more (agent,
dialogue, session), that lies in NAME.sources.jsonl beside it, a line for each record.

veRL: a Parquet row for each agent of a session, `meta.session_group_id` naming the session. The row that the published
example shows has `reward_model` as a string and two fields in `meta`; `flat` writes that. Our whole record travels as
JSON in `extra_info.record`, or, in flat rows, in `reward_model`.

Reading accepts what other programs wrote: what they do not tell is None, and answers that do not parse are left out.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from membuilder.datasets.files import FILE, read_json, read_lines
from membuilder.datasets.parquet import Column, read_table, write_table
from membuilder.datasets.typed import convert, typed
from membuilder.errors import ConfigError, DataError
from membuilder.files import write_atomic
from membuilder.schemes.four_agents.operations import parse
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.trajectories.records import ExpertCall, RLRecord, SFTRecord
from membuilder.types import Agent, Question

_FENCED = re.compile(r"```(?:json)?[^\S\n]*\n(.*)\n[^\S\n]*```", re.DOTALL)
_MANY_TURNS = 10**6
_AGENTS = list(Agent)
_PROMPT: Column = [{"content": str, "role": str}]
_QUESTION: Column = {"question": str, "answer": str, "type": str, "source": str}
_SESSION: dict[str, Column] = {"conversation_id": str, "session_index": int}
_CALL: dict[str, Column] = {**_SESSION, "agent_type": str}
_META: Column = {**_CALL, "agent_index": int, "session_group_id": str, "call_id": str, "is_grouped_training": bool}
_GROUPED: dict[str, Column] = {
    "prompt": _PROMPT,
    "ability": str,
    "reward_model": {
        "style": str,
        **_CALL,
        "expert_output": str,
        "ground_truth": str,
        "qa_questions": [_QUESTION],
        "state_before_path": str,
    },
    "data_source": str,
    "meta": _META,
    "extra_info": {"index": int, "record": str},
}
_FLAT: Column = {"prompt": _PROMPT, "ability": str, "reward_model": str, "data_source": str, "meta": _SESSION}


class _Alpaca(Struct, forbid_unknown_fields=True):
    instruction: str
    input: Literal[""]
    output: str


class _Source(Struct):
    """Where a record comes from; a file of other programs does not tell it."""

    sha256: str = ""
    agent: Agent | None = None
    dialogue: str | None = None
    session: int | None = None


def write_llama_factory(path: Path, records: Sequence[SFTRecord]) -> None:
    """Write the list, and beside it where each record comes from. Raises ConfigError for roles of another scheme."""
    _refuse_other_roles(records)
    rows = [{"instruction": each.prompt, "input": "", "output": f"```json\n{each.completion}\n```"} for each in records]
    sources = [
        {"sha256": _sha256(row), "agent": each.agent, "dialogue": each.dialogue, "session": each.session}
        for row, each in zip(rows, records, strict=True)
    ]
    write_atomic(_sources_path(path), "".join(json.dumps(source, ensure_ascii=False) + "\n" for source in sources))
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=2) + "\n")


def read_llama_factory(path: Path) -> tuple[list[SFTRecord], Counter[str]]:
    """Read records, and count the answers left out because they are no operations. DataError for another shape."""
    rows = read_json(path)
    found = typed(list[_Alpaca], rows, path, FILE, advice="expected records of instruction, empty input and output")
    records, left_out = [], Counter()
    for row, source in zip(found, _sources(path, rows), strict=True):
        completion, problem = _completion(row.output, source.agent)
        if completion is None:
            left_out[problem] += 1
            continue
        agent = source.agent or (Agent.CORE if '"operation"' in completion else None)
        origin = {"agent": agent, "dialogue": source.dialogue, "session": source.session}
        records.append(SFTRecord(prompt=row.instruction, completion=completion, **origin))
    return records, left_out


def write_verl(path: Path, records: Sequence[RLRecord], flat: bool = False) -> None:
    """Write four rows a session, in the agents' order. Raises ConfigError for roles of another scheme."""
    _refuse_other_roles(call for each in records for call in each.calls)
    calls = ((each, call) for each in records for call in each.calls)
    rows = [_row(*pair, number, flat) for number, pair in enumerate(calls)]
    write_table(path, rows, _FLAT if flat else _GROUPED)


def read_verl(path: Path) -> tuple[list[RLRecord], Counter[str]]:
    """Join rows to sessions by what they say of themselves, whatever their order. DataError for another shape.

    Answers that are no operations are left out and counted; their prompts stay, for the policy may be asked them.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(read_table(path), start=1):
        match row:
            case {"prompt": [{"content": str()}], "meta": {"conversation_id": str(name), "session_index": int(index)}}:
                groups[name, index].append(row)
            case _:
                problem = "expected prompt, and meta with conversation_id and session_index"
                raise DataError(path, f"row {number}", "prompt or meta", problem)
    records, left_out = [], Counter()
    for (name, index), rows in sorted(groups.items()):
        try:
            records.append(_record(path, name, index, rows, left_out))
        except (KeyError, TypeError, ValueError) as error:  # nested fields of another shape
            problem = f"reward_model, meta or extra_info is of another shape: {type(error).__name__}: {error}"
            raise DataError(path, f"{name} session {index}", "reward_model", problem) from error
    return records, left_out


def _refuse_other_roles(calls: Iterable[SFTRecord | ExpertCall]) -> None:
    """Raise ConfigError for a role that is none of the four agents', whose one user message these shapes hold."""
    if other := next((call.agent for call in calls if call.agent not in (None, *Agent)), None):
        raise ConfigError(
            f"role {other!r} is none of the four agents, and LLaMA-Factory's and veRL's shapes hold theirs alone: "
            "leave out --to, and train on the file with data.prepared of trainer.sft and trainer.rl"
        )


def _completion(output: str, agent: Agent | None) -> tuple[str | None, str]:
    """Find the operations in an output, without the published second copy of every text; or None, and the reason."""
    fenced = _FENCED.fullmatch(output.strip())
    text = fenced.group(1) if fenced else output
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None, "not_json"
    if isinstance(answer, dict) and "memories_added" in answer:
        if answer.pop("memories_added") and not answer.get("operations"):
            return None, "memories_without_operations"  # so the published program records a reply it could not parse
        text = json.dumps(answer, ensure_ascii=False)
    # How many turns the session had is not known here: as many as the answer itself names.
    if isinstance(answer, dict) and all(re.fullmatch("#[1-9][0-9]{0,2}", key) for key in answer):
        fmt, num_turns = ResponseFormat.TURNS, max((int(key[1:]) for key in answer), default=0)
    else:
        fmt, num_turns = ResponseFormat.OPERATIONS, _MANY_TURNS
    agents = _AGENTS if agent is None else [agent]
    if all(parse(text, each, num_turns, fmt).failure is not None for each in agents):
        return None, "schema"
    return text, ""


def _sources_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.sources.jsonl")


def _sources(path: Path, rows: list[Any]) -> list[_Source]:
    """Return where each row comes from, as the file beside it says; DataError where that is of other rows."""
    if not _sources_path(path).is_file():
        return [_Source()] * len(rows)
    lines = read_lines(_sources_path(path))
    sources = [typed(_Source, source, _sources_path(path), f"line {number}") for number, source in lines]
    if [source.sha256 for source in sources] != [_sha256(row) for row in rows]:
        raise DataError(_sources_path(path), FILE, "sha256", f"is not of the records in {path}; export them anew")
    return sources


def _sha256(row: object) -> str:
    return hashlib.sha256(json.dumps(row, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _row(record: RLRecord, call: ExpertCall, number: int, flat: bool) -> dict[str, Any]:
    if call.agent is None:
        raise DataError(record.dialogue, f"session {record.session_index}", "agent", "is not known; cannot be exported")
    whole, group = msgspec.json.encode(record).decode(), f"{record.dialogue}_session-{record.session_index}"
    meta = {"conversation_id": record.dialogue, "session_index": record.session_index}
    row = {"prompt": [{"role": "user", "content": call.prompt}], "meta": meta}
    if flat:
        model = json.dumps({"agent_type": call.agent, "record": whole}, ensure_ascii=False)
        return row | {"ability": "memory_construction", "data_source": "membuilder", "reward_model": model}
    meta |= {"agent_type": str(call.agent)}
    ground_truth = {each.agent: each.completion for each in record.calls if each.agent is not None}
    reward_model = meta | {
        "style": "memory_management",
        "expert_output": call.completion,
        "ground_truth": json.dumps(ground_truth, ensure_ascii=False),
        "qa_questions": [
            {"question": q.text, "answer": q.answer, "type": q.category, "source": ""} for q in record.questions
        ],
        "state_before_path": record.state_before,
    }
    meta |= {
        "agent_index": _AGENTS.index(call.agent),
        "session_group_id": group,
        "call_id": f"{group}_{call.agent}",
        "is_grouped_training": True,
    }
    names = {"ability": "memory_management", "data_source": "memory_management_grouped"}
    # veRL tells prompts apart by the index, and takes 0 for all of them where it is missing
    return row | names | {"reward_model": reward_model, "extra_info": {"index": number, "record": whole}}


def _record(path: Path, name: str, index: int, rows: list[dict[str, Any]], left_out: Counter[str]) -> RLRecord:
    """Return the record of a session, and count why answers of it were left out."""
    wholes, where = {_whole(row) for row in rows}, f"{name} session {index}"
    if wholes != {None}:
        if len(wholes) > 1:
            raise DataError(path, where, "record", "its rows disagree; export them anew")
        try:
            return msgspec.json.decode(wholes.pop() or "", type=RLRecord)
        except msgspec.MsgspecError as error:
            raise DataError(path, where, "record", f"is no RLRecord: {error}") from error
    models = [row["reward_model"] if isinstance(row.get("reward_model"), dict) else {} for row in rows]
    agents = [row["meta"].get("agent_type") for row in rows]
    if any(count > 1 for agent, count in Counter(agents).items() if agent is not None):
        raise DataError(path, where, "meta.agent_type", "an agent has two rows; each session has one row an agent")
    calls = []
    for row, model, name_of_agent in zip(rows, models, agents, strict=True):
        agent, completion = Agent(name_of_agent) if name_of_agent else None, None
        if model.get("expert_output") is not None:
            completion, problem = _completion(convert(str, model["expert_output"], "expert_output"), agent)
            left_out.update([problem] if completion is None else [])
        calls.append(ExpertCall(prompt=row["prompt"][0]["content"], agent=agent, completion=completion))
    calls.sort(key=lambda call: _AGENTS.index(call.agent) if call.agent else len(_AGENTS))
    asked = next((model["qa_questions"] for model in models if model.get("qa_questions")), [])
    questions = tuple(
        Question(id=f"{index}-{n}", text=raw["question"], answer=raw["answer"], category=raw["type"], evidence=())
        for n, raw in enumerate(asked)
    )
    state = next((model["state_before_path"] for model in models if model.get("state_before_path")), None)
    return RLRecord(dialogue=name, session_index=index, questions=questions, calls=tuple(calls), state_before=state)


def _whole(row: dict[str, Any]) -> str | None:
    extra, model = row.get("extra_info"), row.get("reward_model")
    if isinstance(extra, dict) and extra.get("record"):
        return extra["record"]
    if isinstance(model, str) and model.startswith('{"agent_type"'):
        return json.loads(model)["record"]
    return None

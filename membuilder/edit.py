"""Changes a memory: deletes for good, corrects, inserts; and writes it as JSON Lines or reads it from there.

    python -m membuilder.edit ann.db delete-entry m12                 # --with-turns: the turns that it quotes too
    python -m membuilder.edit ann.db delete-session S3
    python -m membuilder.edit ann.db delete-speaker Bob --also Bobby  # whatever they said, and whatever names them
    python -m membuilder.edit ann.db correct-turn S2:1 "I sold my blue car."
    python -m membuilder.edit ann.db insert-session late.jsonl        # its place is told by its time
    python -m membuilder.edit ann.db rebuild S3                       # reads S3 and later sessions again
    python -m membuilder.edit ann.db export ann.jsonl
    python -m membuilder.edit copy.db import ann.jsonl

What is deleted is gone from the file, its log and index, and from the caches named by --answer-cache and
--embedding-cache. After a deletion --rebuild reads the later sessions again. Sessions are read by the model and
settings that the store names; only where its server is must be said (--provider, --base-url, --api-key).
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.bank.erase import editing, erase_from_cache
from membuilder.bank.forget import Forgotten, forget
from membuilder.bank.indexed_bank import keep_index
from membuilder.bank.json_lines import import_json_lines, write_json_lines
from membuilder.bank.lost_words import Lost, words_only_in
from membuilder.bank.session_ids import sessions_named
from membuilder.bank.store import reading
from membuilder.bank.store_rows import StoredMemory
from membuilder.building.config import EMBEDDING_KEYS, BuildConfig, Keys
from membuilder.building.dialogues import build_all
from membuilder.building.failed_answers import count_answers, summary
from membuilder.building.rebuild import corrected, dialogue_of, with_late_sessions
from membuilder.command import ArgumentParser, exit_status
from membuilder.config import load
from membuilder.datasets.load import load as load_dialogues
from membuilder.embedding.local import DEFAULT_PACKAGE
from membuilder.errors import ConfigError, DataError, StoreError
from membuilder.llm.chat_model import Role
from membuilder.llm.costs import Costs, counted
from membuilder.llm.flags import SETTINGS, add_cost_flags, add_embedding_flags, add_endpoint_flags
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.types import Dialogue

MADE_OF_IT = ("agent_calls.jsonl", "rl_training_data.jsonl", "states")
"""Files of an expert's sample beside its store."""
_CACHES = ("answer_cache", "embedding_cache")


def main(argv: Sequence[str] | None = None) -> int:
    kept = "The store holds what it held, or the whole edit. A rebuild that was stopped goes on with the same command."
    return exit_status("membuilder.edit", lambda: _edit(argv), kept)


def _edit(argv: Sequence[str] | None) -> int:
    given = _parser().parse_args(argv)
    return {
        "delete-entry": _delete,
        "delete-session": _delete,
        "delete-speaker": _delete,
        "correct-turn": _correct,
        "insert-session": _insert,
        "rebuild": _rebuild,
        "export": _export,
        "import": _import,
    }[given.command](given)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, metavar="DB", help="the file that membuilder.build wrote")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *arguments: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        for argument in arguments:
            added.add_argument(argument.lower(), metavar=argument)
        return added

    entry = command("delete-entry", "remove one entry", "ID")
    entry.add_argument("--with-turns", action="store_true", help="the turns it quotes and what else came of them, too")
    session = command("delete-session", "remove a session and what came of it", "ID")
    speaker = command("delete-speaker", "remove whatever a speaker said and whatever names them", "NAME")
    speaker.add_argument("--also", metavar="NAME", action="append", default=[], help="another name of theirs")
    for deletion in (entry, session, speaker):
        deletion.add_argument("--rebuild", action="store_true", help="read the later sessions again")
        _add_builder_flags(deletion)
    _add_builder_flags(command("correct-turn", "let a turn say something else, and read on from there", "ID", "TEXT"))
    _add_builder_flags(command("insert-session", "insert late sessions, and read on from there", "FILE"))
    _add_builder_flags(command("rebuild", "read a session and all later ones again", "ID"))
    command("export", "write all that the store holds to a new file", "FILE")
    command("import", "make a new store of such a file", "FILE")
    return parser


def _add_builder_flags(parser: argparse.ArgumentParser) -> None:
    add_endpoint_flags(parser, "", "must be the store's, which is the default")
    parser.add_argument("--set", **SETTINGS, help="any other key of membuilder.build, such as max_failed=0.05")
    add_embedding_flags(parser)
    add_cost_flags(parser)


def _delete(given: argparse.Namespace) -> int:
    given_in_vain = [name for name in _reading_flags(given) if getattr(given, name)]
    if given_in_vain and not given.rebuild:
        flag = f"--{given_in_vain[0].replace('_', '-')}"
        raise ConfigError(f"{flag} has no effect on a deletion without --rebuild, which reads later sessions again")
    with editing(given.store) as store:
        memory = store.memory()
        gone = forget(memory, **_chosen(given, memory))
        store.replace(gone.memory)
    _say_removed(given, memory, gone)
    for folder in _named_caches(given):
        count = erase_from_cache(folder, gone.lost, gone.answers, gone.vectors)
        print(f"{folder}: removed {count} answers and vectors")
    if not given.rebuild:
        return 0
    dialogue = dialogue_of(gone.memory)
    if gone.first_changed == len(dialogue.sessions):
        print("no later session is there to be read again")
        return 0
    session = dialogue.sessions[gone.first_changed].id
    print(f"reading again from session {session} on; if that is stopped, `rebuild {session}` goes on")
    return _read_again(given, gone.memory, dialogue, gone.first_changed)


def _chosen(given: argparse.Namespace, memory: StoredMemory) -> dict[str, Any]:
    """Return what the command asks to forget. Raises StoreError where the store has no such thing."""
    if given.command == "delete-entry":
        entry = next((each for each in memory.entries if each.id == given.id), None)
        if entry is None:
            raise StoreError(given.store, f"no entry {given.id!r}; it has {_listed(e.id for e in memory.entries)}")
        return {"entries": {entry.id}, "turns": set(entry.source_turns) if given.with_turns else ()}
    if given.command == "delete-session":
        return {"sessions": _sessions(given, memory)}
    speakers = [*memory.settings["speakers"], *(t.speaker for each in memory.sessions for t in each.session.turns)]
    if given.name.casefold() not in map(str.casefold, speakers):
        raise StoreError(given.store, f"no speaker {given.name!r}; it has {_listed(dict.fromkeys(speakers))}")
    if not all(map(str.strip, given.also)):
        raise ConfigError("--also needs a name")
    return {"names": (given.name, *given.also)}


def _sessions(given: argparse.Namespace, memory: StoredMemory) -> list[int]:
    """Return the indices of the session that is named, or of all windows of it. Raises StoreError."""
    sessions = [stored.session for stored in memory.sessions]
    named = sessions_named(sessions, given.id)
    if len({each.timestamp for each in named}) != 1:  # the windows of one session share its date
        raise StoreError(given.store, f"no session {given.id!r}; it has {_listed(each.id for each in sessions)}")
    return [each.index for each in named]


def _correct(given: argparse.Namespace) -> int:
    memory = _read(given.store)
    said = {turn.id: turn.text for stored in memory.sessions for turn in stored.session.turns}
    if said.get(given.id) == given.text:  # as after a correction that was killed at its very end
        with editing(given.store):
            pass
    dialogue, first = corrected(dialogue_of(memory), given.id, given.text, given.store)
    return _read_again(given, memory, dialogue, first)


def _insert(given: argparse.Namespace) -> int:
    memory, path = _read(given.store), Path(given.file)
    late = load_dialogues(path)
    if len(late) != 1:
        raise DataError(path, "whole file", "lines", f"holds {len(late)} dialogues, where one was expected")
    config = _config(given, memory)
    dialogue, first = with_late_sessions(dialogue_of(memory), late[0], config.max_turns, path)
    return _read_again(given, memory, dialogue, first)


def _rebuild(given: argparse.Namespace) -> int:
    memory = _read(given.store)
    return _read_again(given, memory, dialogue_of(memory), _sessions(given, memory)[0])


def _export(given: argparse.Namespace) -> int:
    memory, path = _read(given.store), Path(given.file)
    write_json_lines(memory, path)
    print(f"{path}: {len(memory.sessions)} sessions, {len(memory.entries)} entries")
    return 0


def _import(given: argparse.Namespace) -> int:
    import_json_lines(Path(given.file), given.store)
    print(summary(given.store))
    return 0


def _read_again(given: argparse.Namespace, memory: StoredMemory, dialogue: Dialogue, first: int) -> int:
    """Let the store hold the memory of `dialogue`, read again from session `first` on; exit status 1 as for a build."""
    path, config = given.store, _config(given, memory)
    quiet_libraries(path.with_suffix(f".{LOG_FILE}"))
    keys = Keys(chat=given.api_key, embedding=given.embedding_api_key)

    def run(costs: Costs) -> int:
        stores, keep = [(path, dialogue)], partial(keep_index, config=config.index)
        asyncio.run(build_all(config, stores, Role.BUILDER, keys, costs, keep, rebuild_from=first))
        _forget_in_caches(given, memory, _read(path))
        print(f"read again: sessions {dialogue.sessions[first].id} to {dialogue.sessions[-1].id}")
        print(summary(path))
        counts = count_answers([path])
        if counts.failed_share <= config.max_failed:
            return 0
        problem = f"{counts.failed.total()} of {counts.num_answers} answers failed, and what they would have written is"
        print(f"membuilder.edit: {problem} missing; `membuilder.build` with --retry-failed asks again", file=sys.stderr)
        return 1

    return counted(given, path.with_suffix(".usage.jsonl"), "membuilder.edit", run)


def _forget_in_caches(given: argparse.Namespace, before: StoredMemory, after: StoredMemory) -> None:
    """Take out of the caches named what only the memory before a rebuild held."""
    said = [[turn.content for each in memory.sessions for turn in each.session.turns] for memory in (before, after)]
    left = {entry.text for entry in after.entries}
    is_gone = np.array([entry.text not in left for entry in before.entries], dtype=bool)
    for folder in _named_caches(given):
        count = erase_from_cache(folder, Lost(words=words_only_in(*said)), (), before.vectors[is_gone])
        print(f"{folder}: removed {count} answers and vectors")


def _config(given: argparse.Namespace, memory: StoredMemory) -> BuildConfig:
    """Return the configuration by which the store was built, with what the flags add. Raises ConfigError."""
    settings = dict(memory.settings)
    if settings.get("embedding_model") == DEFAULT_PACKAGE:
        settings["embedding_model"] = None
    keys = {each.name for each in fields(BuildConfig)} - {"model"}
    of_store = {key: settings[key] for key in settings.keys() & keys}
    of_model = ("temperature", "max_tokens", "extra_body")
    of_store |= {f"model.{key}": settings[key] for key in of_model if key in settings}
    of_store |= {"model.name": settings["model"], "out": str(given.store)}
    flags = {"model.name": given.model, "model.provider": given.provider, "model.base_url": given.base_url}
    flags |= {key: getattr(given, key) for key in EMBEDDING_KEYS}
    of_store |= {key: value for key, value in flags.items() if value}
    written = [f"{key}={json.dumps(value)}" for key, value in of_store.items()]
    return load(BuildConfig, None, [*written, *(f"model.{each}" for each in given.endpoint), *given.set])


def _read(path: Path) -> StoredMemory:
    with reading(path) as store:
        return store.memory()


def _reading_flags(given: argparse.Namespace) -> list[str]:
    """Return the names of the flags that only matter where sessions are read again."""
    own = ("model", "provider", "base_url", "api_key", "endpoint", "set", "price", "embedding_api_key")
    return [*own, *(key for key in EMBEDDING_KEYS if key not in _CACHES)]


def _named_caches(given: argparse.Namespace) -> list[Path]:
    return [Path(folder) for name in _CACHES if (folder := getattr(given, name))]


def _say_removed(given: argparse.Namespace, memory: StoredMemory, gone: Forgotten) -> None:
    counts = [f"{len(gone.turns)} turns", f"{len(gone.sessions)} sessions", f"{len(gone.entries)} entries"]
    counts += [f"{gone.num_core_parts} sentences of the core", f"{len(gone.answers)} raw answers"]
    print(f"{given.store}: removed {', '.join(counts)}")
    for kind, ids in (("turns", gone.turns), ("sessions", gone.sessions), ("entries", gone.entries)):
        if ids:
            print(f"  {kind}: {_listed(ids)}")
    if gone.entries and (num_left := len(gone.memory.entries)):
        print(f"  the {num_left} entries left are numbered anew: {gone.memory.entries[0].id} to", end=" ")
        print(gone.memory.entries[-1].id)
    if given.command == "delete-entry" and not given.with_turns:
        (entry,) = (each for each in memory.entries if each.id == given.id)
        if entry.source_turns:
            print(f"  the turns it quotes still say it ({_listed(entry.source_turns)}); --with-turns removes them too")
    if gone.lost.names_one(memory.settings["dialogue"]):
        print(f"  the dialogue's own name still names them: {memory.settings['dialogue']!r}, under which builds go on")
    beside = [given.store.with_suffix(end) for end in (".json", ".html")]
    beside += [given.store.parent / name for name in MADE_OF_IT]
    if made := [str(path) for path in beside if path.exists()]:
        print(f"  not changed, though made of this memory: {_listed(made)}; remove them or make them anew")


def _listed(ids: Any, most: int = 12) -> str:
    names = list(ids)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most]) or 'none'}{more}"


if __name__ == "__main__":
    sys.exit(main())

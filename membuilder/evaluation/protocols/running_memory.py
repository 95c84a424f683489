"""One text as memory, which a model rewrites chunk after chunk: MemAgent and MEM1, with the question in view or blind.

RUN/running/memagent-blind/<dialogue>.jsonl             one text for all questions of a dialogue
RUN/running/memagent/<dialogue>/<question>.jsonl        one text for each question

A line per chunk holds the text after it, so that a run which was killed goes on at the chunk in flight. An answer that
cannot be used leaves the text as it was and is counted; a server that fails ends the run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.datasets.files import FILE, read_appended
from membuilder.datasets.typed import typed
from membuilder.errors import ChatError, ChatErrorKind, DataError
from membuilder.evaluation.chunks import Chunk, chunks_of
from membuilder.evaluation.protocols.prompts import filled
from membuilder.evaluation.recall import Item, Ranking
from membuilder.files import path_of
from membuilder.llm.chat_model import ChatModel, read_words
from membuilder.llm.concurrency import for_each
from membuilder.types import Dialogue

BLIND = "-blind"
NOTHING = "(empty)"
_ADVICE = "remove the file to have its text written again"
_THINK, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewritten:
    """What became of a memory by one chunk."""

    chunk: int
    memory: str
    failure: str | None = None
    """Why the answer could not be used, so that the memory stayed; None where it could."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One memory: that of a dialogue, or of one question to it."""

    dialogue: Dialogue
    question: str | None
    path: Path

    def lines(self) -> list[Rewritten]:
        """Return what is written so far. Raises DataError where that was changed by hand."""
        read = read_appended(self.path, _ADVICE)
        lines = [typed(Rewritten, line, self.path, f"line {number}", advice=_ADVICE) for number, line in read]
        if [line.chunk for line in lines] != list(range(len(lines))):
            raise DataError(self.path, FILE, "chunk", f"are not numbered from 0 on; {_ADVICE}")
        return lines


def chains_of(name: str, dialogue: Dialogue, folder: Path) -> list[Chain]:
    """Return the memories that a system writes of a dialogue: one, or one of each question."""
    if name.endswith(BLIND):
        return [Chain(dialogue, None, path_of(folder / name, dialogue.id, ".jsonl"))]
    of_dialogue = path_of(folder / name, dialogue.id)
    return [Chain(dialogue, q.text, path_of(of_dialogue, q.id, ".jsonl")) for q in dialogue.questions]


async def write_memories(
    name: str,
    dialogues: Sequence[Dialogue],
    folder: Path,
    model: ChatModel,
    concurrency: int,
    verbatim: bool,
    on_chunk: Callable[[], object],
) -> dict[str, int]:
    """Let `model` write what is missing; returns how many answers of which kind of failure left a memory as it was.

    Raises ChatError where the server fails: what is written by then stays.
    """
    failures: Counter[str] = Counter()

    async def write(chain: Chain) -> None:
        lines = chain.lines()
        failures.update(line.failure for line in lines if line.failure is not None)
        memory, chunks = lines[-1].memory if lines else "", chunks_of(chain.dialogue, verbatim)
        chain.path.parent.mkdir(parents=True, exist_ok=True)
        with chain.path.open("a", encoding="utf-8") as out:
            for number in range(len(lines), len(chunks)):
                memory, failure = await _rewritten(name, memory, chunks[number], chain.question, model)
                failures.update([failure] if failure is not None else [])
                line = {"chunk": number, "memory": memory, "failure": failure}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
                on_chunk()

    await for_each(write, _chains(name, dialogues, folder), concurrency)
    return dict(sorted(failures.items()))


async def _rewritten(
    name: str, memory: str, chunk: Chunk, question: str | None, model: ChatModel
) -> tuple[str, str | None]:
    """Return the memory after a chunk, and why it stayed as it was; a chunk without a line is not read."""
    if not chunk.lines:
        return memory, None
    asked = {} if question is None else {"question": question}
    prompt = filled(template_of(name), memory=memory or NOTHING, chunk=chunk.text, **asked)
    try:
        reply = await model.complete([{"role": "user", "content": prompt}])
        return (_state(reply) if name.startswith("mem1") else read_words(reply)), None
    except ChatError as error:
        if not error.models_fault:
            raise
        return memory, str(error.kind)


def template_of(name: str) -> str:
    """Return the name of the prompt that a system reads each chunk with."""
    return name.replace("-", "_")


def _state(reply: str) -> str:
    """Return the last think-block of a reply; its first tag may stand in the prompt. Raises ChatError without one."""
    state = reply.rpartition(_THOUGHT)[0].rpartition(_THINK)[2].strip()
    if not state:
        problem = f"no text between {_THINK} and {_THOUGHT}: serve the model without a reasoning parser"
        raise ChatError(ChatErrorKind.NO_TEXT, problem)
    return state


@dataclass(frozen=True, slots=True)
class RunningMemory:
    """The memories of a folder as a system: each question is answered from the last text alone."""

    name: str
    folder: Path

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        memories = [chain.lines()[-1].memory for chain in chains_of(self.name, dialogue, self.folder)]
        if self.name.endswith(BLIND):
            memories *= len(dialogue.questions)
        return [Ranking(always=always, memory=kept) for always, kept in map(_read, memories)]


def _read(memory: str) -> tuple[Item | None, tuple[str, ...]]:
    return (Item(text=memory, source_turns=()), (memory,)) if memory else (None, ())


def num_left(name: str, dialogues: Sequence[Dialogue], folder: Path) -> int:
    """Count the chunks that are still to be read."""
    return sum(len(chain.dialogue.sessions) - len(chain.lines()) for chain in _chains(name, dialogues, folder))


def _chains(name: str, dialogues: Sequence[Dialogue], folder: Path) -> Iterator[Chain]:
    return (chain for dialogue in dialogues for chain in chains_of(name, dialogue, folder))

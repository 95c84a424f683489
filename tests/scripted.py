"""A language model that answers from a script, and dialogues to build from: for tests of what is built with a model."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from membuilder.llm.chat_model import Message
from membuilder.types import Agent, Dialogue, Session, Turn

START = datetime(2023, 5, 8, 13, 56)
MARKS = {
    Agent.CORE: "core memory",
    Agent.EPISODIC: "episodic memory",
    Agent.SEMANTIC: "semantic memory",
    Agent.PROCEDURAL: "procedural memory",
}


class ScriptedModel:
    """A `ChatModel` whose answers are `script(agent, prompt)`; an exception in its place is raised.

    Notes every prompt and how many calls ran at once.
    """

    def __init__(self, script: Callable[[Agent, str], str | Exception], seconds: float = 0.0):
        self._script, self._seconds = script, seconds
        self.prompts: list[tuple[Agent, str]] = []
        self.running = self.most_running = 0

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str:
        prompt = messages[0]["content"]
        agent = agent_of(prompt)
        self.prompts.append((agent, prompt))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(self._seconds)
        self.running -= 1
        answer = self._script(agent, prompt)
        if isinstance(answer, Exception):
            raise answer
        return answer


def agent_of(prompt: str) -> Agent:
    """Whose prompt it is, by the instructions behind the dialogue."""
    instructions = prompt.split("\n---\n")[-1]
    return next(agent for agent in Agent if instructions.startswith(f"You keep the {MARKS[agent]}"))


def num_turns(prompt: str) -> int:
    return len(re.findall(r"^\[\d+\]", prompt.split("\n---\n")[0], re.MULTILINE))


def store_first_turn(agent: Agent, prompt: str) -> str:
    """Episodic quotes the first turn and, once there is an entry, lets it replace the most related; core notes one
    line.
    """
    if agent is Agent.CORE:
        return json.dumps({"operation": "APPEND", "content": f"{num_turns(prompt)} turns"})
    if agent is not Agent.EPISODIC:
        return '{"operations": []}'
    if "\ne1 " in prompt:
        return json.dumps({"operations": [{"action": "UPDATE", "old_memory": "e1", "quote": [1]}]})
    return json.dumps({"operations": [{"action": "ADD", "quote": [1]}]})


def talk(*sessions: Sequence[str], name: str = "d", only_ann: bool = False) -> Dialogue:
    """One session a week; turn ids D<session>:<turn>, both from 1; Ann and Ben by turns, or Ann alone."""
    people = 1 if only_ann else 2
    return Dialogue(
        id=name,
        speakers=("Ann", "Ben"),
        sessions=tuple(
            Session(
                id=f"D{number}",
                index=number - 1,
                timestamp=START + timedelta(weeks=number - 1),
                turns=tuple(
                    Turn(
                        id=f"D{number}:{n}",
                        speaker=("Ann", "Ben")[(n - 1) % people],
                        role=("user", "assistant")[(n - 1) % people],
                        text=text,
                    )
                    for n, text in enumerate(texts, start=1)
                ),
            )
            for number, texts in enumerate(sessions, start=1)
        ),
        questions=(),
    )

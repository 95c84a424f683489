"""Checks that what is sampled is what is trained on: each prompt its role's own, with the session's text, and fresh.

They look at tokens and text alone and run no model; parity.py compares log-probs.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from membuilder.errors import ParityError
from membuilder.schemes.scheme import Scheme, text_of
from membuilder.text import on_one_line
from membuilder.types import Session
from rollout.tokens import encode_prompt
from rollout.turns import Task
from rollout.types import Group

PROMPT_TEXT, ROLES, WEIGHT_VERSION = "prompt_text", "roles", "weight_version"
PROBE = "Zaltbommel lies on the river Waal; on 17 March Ottoline bought 38 quinces there."
"""A text whose words stand in no chat template."""
SHORTEST_WORD, WORDS_OF_A_TURN, WORD_CHARS = 4, 8, 12
"""Of a turn its first words are looked for, because a long turn may be shown cut."""
MAX_SHOWN_CHARS = 160
"""Of a prompt that a message shows."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ParityError where the tokenizer's chat template, or the tokenizer, loses a prompt's text."""
    _check_kept(_words(PROBE), tokenizer.decode(encode_prompt(tokenizer, PROBE)), f"the prompt '{PROBE}'")


def check_prompts(
    tokenizer: PreTrainedTokenizerBase, scheme: Scheme, tasks: Sequence[Task], groups: Sequence[Group]
) -> None:
    """Raise ParityError where a sample's prompt lacks the text of its session, or is not its own role's."""
    for task, group in zip(tasks, groups, strict=True):
        asked = {role: scheme.ask(role, task.session, task.bank, task.shown) for role in scheme.roles}
        expected = {role: tuple(encode_prompt(tokenizer, prompt)) for role, prompt in asked.items()}
        for role, sample in ((r, s) for rollout in group.rollouts for r, s in rollout.samples.items()):
            if sample.prompt_token_ids != expected[role]:
                found = [other for other, ids in expected.items() if ids == sample.prompt_token_ids]
                whose = f"the prompt of role {found[0]}" if found else "no prompt of this session"
                raise ParityError(ROLES, f"{task.id}: the completion of role {role} was sampled from {whose}")
        for role, ids in expected.items():
            empty = text_of(scheme.ask(role, replace(task.session, turns=()), task.bank, task.shown))
            words = [word for word in session_words(task.session) if word not in empty.casefold()]
            _check_kept(words, tokenizer.decode(ids), f"{task.id}: the session in the prompt of role {role}")


def check_versions(groups: Sequence[Group], version: int) -> None:
    """Raise ParityError where a completion was not sampled with the weights of `version`, which are the policy's."""
    samples = [sample for group in groups for rollout in group.rollouts for sample in rollout.samples.values()]
    stale = {completion.weight_version for sample in samples for _, completion, _ in sample.turns()} - {version}
    if stale:
        raise ParityError(
            WEIGHT_VERSION,
            f"completions of step {version} were sampled with the weights of step {sorted(stale)[0]}: the engine did "
            "not take the policy's (load_weights). Nothing was trained on them",
        )


def session_words(session: Session) -> list[str]:
    """Return the first longer words of each turn, shortened and in lower case."""
    return [word for turn in session.turns for word in _words(turn.content)[:WORDS_OF_A_TURN]]


def _words(text: str) -> list[str]:
    return [word.casefold()[:WORD_CHARS] for word in re.findall(r"\w+", text) if len(word) >= SHORTEST_WORD]


def _check_kept(words: Sequence[str], prompt: str, what: str) -> None:
    """Raise ParityError where more than half of the words are not in the prompt; a tokenizer may change some."""
    kept = sum(word in prompt.casefold() for word in words)
    if 2 * kept < len(words):
        shown = on_one_line(prompt)[:MAX_SHOWN_CHARS]
        raise ParityError(
            PROMPT_TEXT,
            f"{what} is lost: {kept} of {len(words)} of its words are in the text that the model reads, which begins "
            f"{shown!r}. Does the chat template write the user's message, does the tokenizer know this script, and do "
            "the templates of `prompts` hold the turns?",
        )

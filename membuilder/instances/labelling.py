"""Packs labelled examples into chunks and asks for the labels of others (NLU, BANKING77, CLINC150, sentence roles).

A label is shown as a number, which another instance gives to another label: it must be learned from the chunks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from membuilder.instances.draw import Draw, shuffled
from membuilder.instances.frame import FRAME_TOKENS, LABELLING, framed
from membuilder.instances.records import Example, Instance, Progress, Shape, Tokens

ASK = "Which number is the label of this sentence? Answer with \\boxed{number}."


def pack(
    examples: Iterator[tuple[int, Example]],
    shape: Shape,
    tokens: Tokens,
    names: Sequence[object],
    progress: Progress,
    words: tuple[str, str] = ("Sentence", "Label"),
) -> Iterator[Instance]:
    """Yield instances of consecutive examples, none of them in two; see `reading.pack`."""
    number, example = next(examples, (progress.units, None))
    while example is not None:
        draw = Draw(*names, progress.instances)
        chunks: list[list[Example]] = []
        for size in [draw.between(*shape.chunk_tokens) for _ in range(shape.chunks)]:
            chunk, room = [], size - FRAME_TOKENS
            while example is not None and (room := room - _size(example, words, tokens)) >= 0:
                chunk.append(example)
                number, example = next(examples, (number + 1, None))
            if chunk:
                chunks.append(chunk)
            elif example is not None:
                progress.dropped["longer_than_a_chunk"] += 1
                number, example = next(examples, (number + 1, None))
        shown = {each.text: each.label for chunk in chunks for each in chunk}
        labels = set(shown.values())
        asked: dict[str, str] = {}
        while example is not None and len(asked) < shape.questions[1]:
            if example.text in shown or example.text in asked:
                progress.dropped["repeated_text"] += 1
            elif example.label not in labels:
                progress.dropped["label_not_shown"] += 1
            else:
                asked[example.text] = example.label
            number, example = next(examples, (number + 1, None))
        names_of_this = (*names, progress.instances)
        progress.units, progress.instances = number, progress.instances + 1
        if len(asked) < shape.questions[0]:
            progress.dropped["in_an_instance_of_too_few_questions"] += len(asked)
            continue
        number_of = {label: str(i) for i, label in enumerate(shuffled(labels, *names_of_this))}
        yield Instance(
            chunks=tuple(_chunk(chunk, i, number_of, words, draw) for i, chunk in enumerate(chunks)),
            questions=tuple(_question(text, number_of[label]) for text, label in asked.items()),
        )


def _size(example: Example, words: tuple[str, str], tokens: Tokens) -> int:
    return tokens(_shown(example, "00", words)) + 1


def _shown(example: Example, number: str, words: tuple[str, str]) -> str:
    return f"{words[0]}: {example.text}\n{words[1]}: {number}"


def _chunk(
    examples: Sequence[Example], number: int, number_of: dict[str, str], words: tuple[str, str], draw: Draw
) -> str:
    blocks = [_shown(example, number_of[example.label], words) for example in examples]
    return "\n".join(framed(["\n\n".join(blocks)], number, LABELLING, draw))


def _question(text: str, number: str) -> dict[str, Any]:
    return {"question": f"Sentence: {text}\n{ASK}", "answer": number}

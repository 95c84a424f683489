"""Packs passages into chunks and asks the questions about them (SQuAD, HotpotQA)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from membuilder.datasets.memalpha import turn_id
from membuilder.instances.draw import Draw, shuffled
from membuilder.instances.frame import FRAME_TOKENS, LINES_BEFORE, READING, framed
from membuilder.instances.records import Asked, Instance, Passage, Progress, Shape, Tokens, Unit

MAX_ANSWER_WORDS = 4


def pack(
    units: Iterator[tuple[int, Unit]], shape: Shape, tokens: Tokens, names: Sequence[object], progress: Progress
) -> Iterator[Instance]:
    """Yield instances of as many units as fit, in their order; `progress` is that of what was yielded last.

    A unit comes with its number in the source. `names` are what the draws depend on, beside the instance's number.
    """
    number, unit = next(units, (progress.units, None))
    while unit is not None:
        draw = Draw(*names, progress.instances)
        layout = _Layout(sizes=[draw.between(*shape.chunk_tokens) for _ in range(shape.chunks)])
        limit, asked = shape.chunk_tokens[1], []
        while unit is not None:
            read = map(_on_lines, unit.passages) if shape.sentence_lines else unit.passages
            passages = [_fitting(passage, limit, tokens) for passage in read]
            if not all(passage.sentences for passage in passages):
                progress.dropped["sentence_longer_than_a_chunk"] += len(unit.questions)
            elif layout.place(passages, tokens):
                asked += unit.questions
            elif layout.chunks:
                break
            else:
                progress.dropped["longer_than_an_instance"] += len(unit.questions)
            progress.dropped.update(unit.dropped)
            number, unit = next(units, (number + 1, None))
        progress.units = number
        questions = _questions(asked, layout, shape, (*names, progress.instances), progress.dropped)
        progress.instances += 1
        if questions:
            yield _instance(layout, questions, draw)


@dataclass(kw_only=True)
class _Layout:
    sizes: list[int]
    """Of each chunk, in tokens."""
    chunks: list[list[Passage]] = field(default_factory=list)
    filled: int = FRAME_TOKENS
    """Tokens in the last chunk."""

    def place(self, passages: Sequence[Passage], tokens: Tokens) -> bool:
        """Put those that are not there yet behind the others; if the chunks do not suffice for all, put none."""
        kept, filled = [list(chunk) for chunk in self.chunks], self.filled
        for passage in passages:
            if any(passage.key == each.key for chunk in self.chunks for each in chunk):
                continue
            size = _size(passage, tokens)
            if not self.chunks or self.filled + size > self.sizes[len(self.chunks) - 1]:
                if len(self.chunks) == len(self.sizes):
                    self.chunks, self.filled = kept, filled
                    return False
                self.chunks.append([])
                self.filled = FRAME_TOKENS
            self.chunks[-1].append(passage)
            self.filled += size
        return True


def _size(passage: Passage, tokens: Tokens) -> int:
    """Count the tokens of a passage with its title and the line breaks behind both."""
    return tokens(passage.title) + sum(map(tokens, passage.sentences)) + 2


def _on_lines(passage: Passage) -> Passage:
    """Put a line break behind every sentence in place of the blanks there."""
    return replace(passage, sentences=tuple(f"{sentence.strip()}\n" for sentence in passage.sentences))


def _fitting(passage: Passage, limit: int, tokens: Tokens) -> Passage:
    """Cut a passage to the sentences at its beginning that a chunk holds."""
    room, kept = limit - FRAME_TOKENS - tokens(passage.title) - 2, 0
    for sentence in passage.sentences:
        room -= tokens(sentence)
        if room < 0:
            break
        kept += 1
    return replace(passage, sentences=passage.sentences[:kept])


def _questions(
    asked: Sequence[Asked], layout: _Layout, shape: Shape, names: Sequence[object], dropped: Counter[str]
) -> list[Asked]:
    """Return the questions that the chunks answer, as many as are wanted; count the others by reason."""
    lengths = {passage.key: len(passage.sentences) for chunk in layout.chunks for passage in chunk}
    kept: dict[str, Asked] = {}
    for question in asked:
        if len(question.answer.split()) > MAX_ANSWER_WORDS:
            dropped["long_answer"] += 1
        elif any(sentence >= lengths[key] for key, sentence in question.evidence):
            dropped["evidence_cut"] += 1
        elif question.question in kept:
            dropped["asked_twice"] += 1
        else:
            kept[question.question] = question
    least, most = shape.questions
    if len(kept) < least:
        dropped["in_an_instance_of_too_few_questions"] += len(kept)
        return []
    dropped["more_than_an_instance_takes"] += max(0, len(kept) - most)
    chosen = set(shuffled(kept, *names)[:most])
    return [question for text, question in kept.items() if text in chosen]


def _instance(layout: _Layout, questions: Sequence[Asked], draw: Draw) -> Instance:
    place: dict[tuple[str, int], str] = {}
    chunks = []
    for number, passages in enumerate(layout.chunks):
        lines: list[str] = []
        for passage in passages:
            lines += [passage.title] * bool(passage.title)
            for index, line in enumerate(lines_of_sentences(passage.sentences)):
                place[passage.key, index] = turn_id(number + 1, LINES_BEFORE + len(lines) + 1 + line)
            lines += "".join(passage.sentences).rstrip().split("\n")
        chunks.append("\n".join(framed(lines, number, READING, draw)))
    asked = [
        {
            "question": question.question,
            "answer": question.answer,
            "evidence": list(dict.fromkeys(place[each] for each in question.evidence)),
        }
        for question in questions
    ]
    return Instance(chunks=tuple(chunks), questions=tuple(asked))


def lines_of_sentences(sentences: Sequence[str]) -> Iterator[int]:
    """Yield the line on which each sentence begins, from 0, once they are joined."""
    line = 0
    for sentence in sentences:
        blanks = sentence[: len(sentence) - len(sentence.lstrip())]
        yield line + blanks.count("\n")
        line += sentence.count("\n")

"""A model that answers and grades as `evidence` judges, from the text of a request alone."""

from collections.abc import Iterable

from membuilder.llm.answer_and_judge import answer_prompt
from membuilder.text import on_one_line
from membuilder.types import Dialogue
from tests.fault_server import Request, echo

YES, NO = '{"correct": true}', '{"correct": false}'


class EvidenceStub:
    """It answers "found" where every evidence turn of the question stands in the memory it is shown, and grades so.

    People of one name are asked the same at other times, so that time and question name the evidence.
    """

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        self.evidence: dict[tuple[str, str], list[str]] = {}
        for dialogue in dialogues:
            turns = {turn.id: turn.text for session in dialogue.sessions for turn in session.turns}
            for question in dialogue.questions:
                texts = [on_one_line(turns[turn]) for turn in question.evidence]
                _, asked = _parts(answer_prompt(question, core="", memories=[]))
                assert self.evidence.setdefault(asked, texts) == texts, "the question alone names its evidence"
        self.answered = self.graded = 0

    def __call__(self, request: Request) -> str:
        prompt = echo(request)
        if "response_format" in request.body:
            self.graded += 1
            return YES if "Answer to grade: found\n" in prompt else NO
        self.answered += 1
        memory, asked = _parts(prompt)
        return "found" if all(text in memory for text in self.evidence[asked]) else "not found"


def _parts(prompt: str) -> tuple[str, tuple[str, str]]:
    """Return the memory of a prompt, and what is asked and when."""
    before, _, after = prompt.partition("\nQuestion: ")
    memory, _, now = before.rpartition("\n")
    return memory, (now, after.partition("\n")[0])

"""A model that answers and grades as `evidence` judges, from the text of a request alone."""

from collections import defaultdict
from collections.abc import Iterable

from membuilder.text import on_one_line
from membuilder.types import Dialogue
from tests.fault_server import Request, echo

YES, NO = '{"correct": true}', '{"correct": false}'


class EvidenceStub:
    """It answers "found" where every evidence turn of the question stands in the memory it is shown, and grades so.

    People of one name may be asked the same; whose turns they are, the memory tells.
    """

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        self.evidence: dict[str, list[list[str]]] = defaultdict(list)
        for dialogue in dialogues:
            turns = {turn.id: turn.text for session in dialogue.sessions for turn in session.turns}
            for question in dialogue.questions:
                self.evidence[question.text].append([on_one_line(turns[turn]) for turn in question.evidence])
        self.answered = self.graded = 0

    def __call__(self, request: Request) -> str:
        prompt = echo(request)
        if "response_format" in request.body:
            self.graded += 1
            return YES if "Answer to grade: found\n" in prompt else NO
        self.answered += 1
        memory, _, rest = prompt.partition("\nQuestion: ")
        asked = self.evidence[rest.partition("\n")[0]]
        return "found" if any(all(text in memory for text in texts) for texts in asked) else "not found"

"""A model that answers and grades as `evidence` judges, from the text of a request alone."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import permutations

from membuilder.llm.answer_and_judge import answer_prompt
from membuilder.text import on_one_line
from membuilder.types import Dialogue
from tests.fault_server import Request, echo

YES, NO = '{"correct": true}', '{"correct": false}'


class EvidenceStub:
    """It answers "found" where every evidence turn of the question stands in the memory it is shown, and grades so.

    Two people of one name may be asked the same on one day; whose turns they are, the memory tells.
    """

    def __init__(self, dialogues: Iterable[Dialogue]) -> None:
        asked: dict[tuple[str, str], list[tuple[list[str], set[str]]]] = defaultdict(list)
        for dialogue in dialogues:
            turns = {turn.id: on_one_line(turn.text) for session in dialogue.sessions for turn in session.turns}
            said = set(turns.values())
            for question in dialogue.questions:
                _, key = _parts(answer_prompt(question, core="", memories=[]))
                asked[key].append(([turns[turn] for turn in question.evidence], said))
        for cases in asked.values():
            for (mine, said), (others, _) in permutations(cases, 2):
                assert mine == others or not said.issuperset(others), "day and question name the evidence"
        self.evidence = {key: [texts for texts, _ in cases] for key, cases in asked.items()}
        self.answered = self.graded = 0

    def __call__(self, request: Request) -> str:
        prompt = echo(request)
        if "response_format" in request.body:
            self.graded += 1
            return YES if "Answer to grade: found\n" in prompt else NO
        self.answered += 1
        memory, asked = _parts(prompt)
        found = any(all(text in memory for text in texts) for texts in self.evidence[asked])
        return "found" if found else "not found"


def _parts(prompt: str) -> tuple[str, tuple[str, str]]:
    """Return the memory of a prompt, and what is asked and when."""
    before, _, after = prompt.partition("\nQuestion: ")
    memory, _, now = before.rpartition("\n")
    return memory, (now, after.partition("\n")[0])

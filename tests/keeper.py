"""The complete scheme of docs/schemes.md, copied out of the page, and one of several turns made of it."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/schemes.md"
SCHEME, REWARD = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SEVERAL_TURNS = '''

from dataclasses import replace

from membuilder.schemes.scheme import Call, CallOutcome, Prompt


class Clerk(Keeper):
    """It asks in messages, tells what became of the call and lets the role go on once; cut answers count."""

    max_turns = 2

    def ask(self, role, session, bank, shown):
        return Prompt(messages=({"role": "user", "content": super().ask(role, session, bank, shown)},))

    def parse_cut(self, role, text, session):
        return self.parse(role, text, session) if re.match(r"#\\d", text) else AgentUpdate()

    def apply(self, session, bank, updates, shown):
        result, update = super().apply(session, bank, updates, shown), updates["keeper"]
        outcome = CallOutcome.RAN if update.failure is None else CallOutcome.SCHEMA
        lines = [operation.quote[0] for operation in update.operations] or [None]
        calls = tuple(Call(name="keep", arguments={"line": line}, outcome=outcome) for line in lines)
        more = ({"role": "tool", "content": f"{outcome}\\nkeep:"},)
        return replace(result, calls={"keeper": calls}, more={"keeper": more})


def make_scheme(prompts):
    return Clerk(prompts)
'''


def write(folder: Path, more: str = "") -> Path:
    """The scheme as a folder; `more` stands behind its code."""
    folder.mkdir(exist_ok=True)
    (folder / "scheme.py").write_text(SCHEME + more)
    (folder / "reward.py").write_text(REWARD)
    return folder

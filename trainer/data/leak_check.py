"""What training shares with evaluation files: the same or nearly the same questions, contexts or labelled examples."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from membuilder.errors import LeakError
from membuilder.instances.leaks import compared, dialogues_of, refusal, shared
from membuilder.schemes.scheme import text_of
from membuilder.trajectories.records import SFTRecord
from membuilder.types import Dialogue, Session, Turn
from trainer.configs import DataConfig

_log = logging.getLogger(__name__)


def refuse_leaks(trained: Iterable[Dialogue], config: DataConfig, source: str, drawn: Sequence[Dialogue] = ()) -> None:
    """Raise LeakError where an evaluation file that `config` names shares something with training; log it if allowed.

    `source` says in messages where training data are from. `drawn` are instances of the same file that are held out at
    random, which are compared too. Without any of them nothing is read.
    """
    places = [("those held out at random (data.eval_path names others)", drawn)] if drawn else []
    named = [] if config.eval_path is None else [("data.eval_path", config.eval_path)]
    named += [("data.eval_files", path) for path in config.eval_files]
    places += [(f"{path} ({key})", dialogues_of(Path(path))) for key, path in named]
    if not places:
        return
    lines = compared(trained)
    found = []
    for place, dialogues in places:
        result = shared(compared(dialogues), lines)
        if any(each.count for each in result):
            found.append((place, result))
    if not found:
        return
    problem = f"{source} {refusal(found)}"
    if not config.allow_leaks:
        raise LeakError(
            f"{problem}: leave them out, or train on them with data.allow_leaks=true, which config and model card tell"
        )
    _log.warning("%s; data.allow_leaks allows it, and the model card says so", problem)


def dialogues_of_prompts(records: Iterable[SFTRecord]) -> Iterator[Dialogue]:
    """Yield the first prompt of each session as a dialogue: those of the other roles hold the same texts."""
    seen = set()
    for number, record in enumerate(records):
        alone = record.dialogue is None or record.session is None
        session = ("line", number) if alone else (record.dialogue, record.session)
        if session not in seen:
            seen.add(session)
            turn = Turn(id="P1:1", speaker="text", role="user", text=text_of(record.asked))
            read = Session(id="P1", index=0, timestamp=datetime.min, turns=(turn,))
            yield Dialogue(id=str(number), speakers=("text",), sessions=(read,), questions=())

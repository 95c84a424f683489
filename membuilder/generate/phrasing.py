"""How a template becomes a sentence, the same way for facts and for small talk."""

import random
import re
from collections.abc import Mapping, Sequence

MAX_WORDS = 18
LEAD_SHARE = 0.3

_SENTENCE_START = re.compile(r"(^|[.?!] )([a-z])")


def tell(rng: random.Random, template: str, values: Mapping[str, str], leads: Sequence[str]) -> str:
    """Fill the template, sometimes with a lead in front where the turn stays short."""
    plain = capitalise(template.format_map(values))
    if rng.random() > LEAD_SHARE:
        return plain
    lead = rng.choice(leads)
    led = capitalise(f"{lead} {_mid_sentence(template)}".format_map(values))
    return led if len(led.split()) <= MAX_WORDS else plain


def capitalise(text: str) -> str:
    """Upper-case sentence starts: a slot value may open a sentence."""
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def _mid_sentence(template: str) -> str:
    """Lower the first letter, unless the first word is a slot (a value has its own case), `I` or a title."""
    keeps_case = template.startswith("{") or template.split()[0] in ("I", "Dr")
    return template if keeps_case else template[0].lower() + template[1:]

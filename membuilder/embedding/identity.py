"""Which embedder a memory was built with, so that its vectors are searched and added to by no other.

Two models of equal width give vectors that fit each other's index and mean nothing there. A name says little: a folder
moves, a server changes its model behind its name. So the vector of one fixed text decides, and the names are for the
message.
"""

import base64
import logging
from collections.abc import Mapping, Set
from functools import cache
from typing import Any

import numpy as np

from membuilder.embedding.local import TextEmbedder
from membuilder.errors import ConfigError

PROBE = "ready?"
"""The text, which every server is asked for anyway when it is opened. It is short: a changed model or a prefix that is
put before every text moves it farther than a sentence.
"""
SAME_COSINE = 0.999
"""From here on two probes are of one model. On MiniLM, bfloat16 instead of float32 costs 0.0001 and float16 less;
noise of 1% in the weights costs 0.001, the prefix `query: ` 0.6. Weights of 8 bits count as another model.
"""
NAME, PROVIDER, REVISION, VECTOR = (f"embedding_{part}" for part in ("model", "provider", "revision", "probe"))
SETTINGS = "embedding_settings"
"""What becomes of long texts at a server, and what it is sent besides them: no short probe can tell."""
_log = logging.getLogger(__name__)


def probed(embedder: TextEmbedder, probe: np.ndarray | None = None) -> dict[str, Any]:
    """Return what is known of an embedder without a name, as JSON values; `probe` is its vector of PROBE, if at hand.

    Raises ConfigError for a vector that points nowhere.
    """
    vector = np.asarray(embedder.embed([PROBE])[0] if probe is None else probe, dtype="<f4")
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or not length:
        raise ConfigError(f"the embedder gives {PROBE!r} a vector of length {length}; name another embedding model")
    packed = base64.b64encode(vector.tobytes()).decode("ascii")
    return {NAME: None, PROVIDER: None, REVISION: None, "dimension": embedder.dimension, VECTOR: packed}


def exact_keys(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> Set[str]:
    """Return the settings that must be equal. What was recorded without a probe has the embedder's name among them."""
    keys = (recorded.keys() | present.keys()) - {REVISION, VECTOR, SETTINGS}
    return keys - {NAME, PROVIDER, "dimension"} if VECTOR in recorded else keys


def other_embedder(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> str | None:
    """Say how the embedder at hand is another than the recorded one; None where it is the same or nothing tells."""
    width = recorded.get("dimension", present["dimension"])  # bank folders of earlier versions do not tell it
    if width != present["dimension"]:
        how = f"its vectors have {present['dimension']} numbers instead of {width}"
    elif VECTOR not in recorded:
        _warn_of_unknown()
        return None
    elif VECTOR not in present:
        return None
    else:
        cosine = cosine_of(*(np.frombuffer(base64.b64decode(side[VECTOR]), "<f4") for side in (recorded, present)))
        if cosine >= SAME_COSINE:
            return _other_settings(recorded.get(SETTINGS), present.get(SETTINGS))
        how = f"a test text lies elsewhere, at a cosine of {cosine:.3f} where the same model has {SAME_COSINE} or more"
    then, now = described(recorded), described(present)
    return f"was built with the embedder {then}; {now} is another: {how}"


def _other_settings(recorded: Mapping[str, Any] | None, present: Mapping[str, Any] | None) -> str | None:
    if recorded is None or present is None or recorded == present:
        return None
    then, now = (", ".join(f"{key}={value}" for key, value in sorted(side.items())) for side in (recorded, present))
    return f"was built with other settings of the embedding server: {then} (now {now})"


def described(about: Mapping[str, Any]) -> str:
    """Name an embedder, such as `'e5' (revision 0123abcd)`, in a message."""
    if about.get(NAME) is None:
        return "the one given"
    server = f" at {about[PROVIDER]}" if about.get(PROVIDER) else ""
    revision = f" (revision {about[REVISION][:12]})" if about.get(REVISION) else ""
    return f"{about[NAME]!r}{server}{revision}"


def cosine_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@cache
def _warn_of_unknown() -> None:
    """Say it once per process, however many stores there are."""
    problem = "a memory of an earlier version does not know its embedder; only name and width are compared"
    _log.warning("%s. Build it anew to have other models of that width refused", problem)

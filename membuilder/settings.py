"""What was begun goes on under the settings it was begun with, or not at all."""

from collections.abc import Iterable, Mapping
from typing import Any

_ABSENT = object()
_MAX_NAMED = 4


def difference(
    recorded: Mapping[str, Any], present: Mapping[str, Any], keys: Iterable[str] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Map the key of each setting that differs to (recorded value, value now); None stands for an absent one.

    `keys` compares these top-level settings alone.
    """
    wanted = recorded.keys() | present.keys() if keys is None else set(keys)
    then, now = (_flat({key: side[key] for key in wanted if key in side}) for side in (recorded, present))
    differing = sorted(key for key in then.keys() | now.keys() if then.get(key, _ABSENT) != now.get(key, _ABSENT))
    return {key: (then.get(key), now.get(key)) for key in differing}


def described(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Name the differing settings with both values, as every refusal to go on says it."""
    named = [f"{key}={then!r} (now {now!r})" for key, (then, now) in list(differing.items())[:_MAX_NAMED]]
    more = f" and {len(differing) - len(named)} more" if len(differing) > len(named) else ""
    return f"was begun with other settings: {', '.join(named)}{more}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat

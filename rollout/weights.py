"""The names a weight update must bring: an engine given half a model would go on with the other half's old weights."""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from membuilder.errors import MemBuilderError

Tensor = TypeVar("Tensor")


def checked(named_tensors: Iterable[tuple[str, Tensor]], expected: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the pairs as they come; they must be the whole model, with a tied head, of which vLLM on CPU keeps a copy.

    One at a time, because under ZeRO-3 a parameter is whole only while it is the current one. Raises MemBuilderError at
    an unknown name, and at the end when names are missing; the engine must not be used after that.
    """
    missing = set(expected)
    remedy = "send the model's whole state_dict once. The engine now holds a mixture: make a new one"
    for name, tensor in named_tensors:
        if name not in missing:
            raise MemBuilderError(f"'{name}' is not among the engine's weights, or came twice; {remedy}")
        missing.remove(name)
        yield name, tensor
    if missing:
        raise MemBuilderError(f"the weights lack {sorted(missing)[:3]} ({len(missing)} in all); {remedy}")

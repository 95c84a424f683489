"""The names a weight update must bring: an engine given half a model would go on with the other half's old weights."""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from membuilder.errors import MemBuilderError

Tensor = TypeVar("Tensor")


def checked(named_tensors: Iterable[tuple[str, Tensor]], expected: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The pairs as they come, held to be the whole model, a tied head included: vLLM on CPU keeps a packed copy of it.

    One at a time, because under ZeRO-3 a parameter is whole only while it is the current one. Raises MemBuilderError at
    an unknown name, and at the end when names are missing; the engine must not be used after that.
    """
    missing = set(expected)
    for name, tensor in named_tensors:
        if name not in missing:
            raise MemBuilderError(
                f"'{name}' is not among the engine's weights, or came twice; send the model's state_dict once. The engine "
                "now holds a mixture: make a new one"
            )
        missing.remove(name)
        yield name, tensor
    if missing:
        raise MemBuilderError(
            f"the weights lack {sorted(missing)[:3]} ({len(missing)} in all); send the model's whole state_dict. The engine "
            "now holds a mixture: make a new one"
        )

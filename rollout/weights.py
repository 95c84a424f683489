"""The names a weight update must bring: an engine given half a model would go on with the other half's old weights."""

from collections.abc import Collection

from membuilder.errors import MemBuilderError


def check_names(given: Collection[str], expected: Collection[str]) -> None:
    """Raise unless `given` names the whole model, a tied head included: vLLM on CPU keeps a packed copy of it."""
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise MemBuilderError(
            f"these are not the engine's weights: missing {missing[:3]}, unknown {unknown[:3]} "
            f"({len(missing)} and {len(unknown)} in all); send the model's whole state_dict. Nothing was changed."
        )

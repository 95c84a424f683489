"""Model folders that a user names: what transformers and the like say of a damaged one, on one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.text import in_short


@contextmanager
def loading(what: str, path: str | Path, advice: str = "name a whole Hugging Face folder or model") -> Iterator[None]:
    """Raise ConfigError for what a loader finds wrong with a folder or hub name; only the call of it stands inside.

    `advice` is what to do where no better is known.
    """
    try:
        yield
    except _loader_errors() as error:
        if (Path(path) / "adapter_config.json").is_file():
            advice = "an adapter alone lies there: merge it into its model and name that"
        elif "trust_remote_code" in str(error):
            advice = "it brings code of its own, which is never run here: name a model that transformers itself knows"
        raise ConfigError(f"no {what} at '{path}': {advice} ({type(error).__name__}: {in_short(error)})") from error


def _loader_errors() -> tuple[type[Exception], ...]:
    # here, because most commands load no model
    from pickle import UnpicklingError
    from struct import error as StructError  # noqa: N812  (of a GGUF file that ends too soon)

    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    # Loaders index and call what they read from JSON unchecked: a wrong value there is any of the first seven.
    plain = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, EOFError)
    return (*plain, UnpicklingError, StructError, StrictDataclassError, SafetensorError)

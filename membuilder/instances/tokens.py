"""Counts tokens by a model's tokenizer, or roughly without one."""

from functools import lru_cache
from pathlib import Path

from membuilder.datasets.files import read_json
from membuilder.errors import ConfigError
from membuilder.instances.records import Tokens

CHARACTERS_PER_TOKEN = 4


def counter(tokenizer: Path | None) -> Tokens:
    """Return what counts tokens: by the tokenizer.json of a model's folder, or four characters a token."""
    if tokenizer is None:
        return lambda text: -(-len(text) // CHARACTERS_PER_TOKEN)
    from tokenizers import Tokenizer  # a second to load, which `--help` need not wait for

    counting = Tokenizer.from_file(str(tokenizer_file(tokenizer)))
    counting.no_truncation()  # an embedding model's cuts at its own limit, and fills up to it
    counting.no_padding()
    encode = counting.encode
    return lru_cache(1 << 14)(lambda text: len(encode(text, add_special_tokens=False).ids))


def tokenizer_file(tokenizer: Path) -> Path:
    """Return the file in a model's folder. Raises ConfigError if there is none."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise ConfigError(f"tokenizer {tokenizer}: no tokenizer.json is there; name the folder of a model")
    if not isinstance(content := read_json(file), dict) or "model" not in content:
        raise ConfigError(f"tokenizer {file}: is no tokenizer.json; name the folder of a model")
    return file

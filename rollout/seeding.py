"""Random states: engines seed the process they live in, and a trainer must not notice."""

import random
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """Return every random state of this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: dict) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Run something that draws from or reseeds the global generators, then put them back."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)


def with_own_rng(seed: int, items: Generator[Item, None, None]) -> Iterator[Item]:
    """Draw items under random states of their own: neither they nor their taker notices what the other one draws."""
    with isolated_rng():
        seed_everything(seed)
        own = rng_state()
    with closing(items):
        while True:
            with isolated_rng():
                restore_rng(own)
                item = next(items, None)
                own = rng_state()
            if item is None:
                return
            yield item

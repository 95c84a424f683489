"""Processes for tests to kill. All are forked from one server that has imported what they need, so that a start takes a
moment.

process = start(function_of_a_module, "argument")
process.kill()
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["membuilder.eval", "membuilder.llm.client", "tests.test_builder", "tests.served"])


def start(function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """`function` must be importable by name, and its arguments go through pickle; a Connection may be one of them."""
    process = _SERVER.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def pipe() -> tuple[Any, Any]:
    """(to read, to write)"""
    return _SERVER.Pipe(duplex=False)

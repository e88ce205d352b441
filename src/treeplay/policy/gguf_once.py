"""Read a GGUF file once while Transformers loads it.

Transformers reads the whole file for the configuration, for the tokenizer and for the weights, each
time with every token of the vocabulary, and makes the table of tensor names anew for every module
of the model. That is most of the time that loading a small model takes (`benchmarks/loading.py`).
Within :func:`gguf_read_once` reader and table are made once. What is loaded is the same.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

_LOCK = threading.RLock()  # the library's names are replaced for all threads


@contextlib.contextmanager
def gguf_read_once() -> Iterator[None]:
    """Within it, ``gguf.GGUFReader`` and ``gguf.get_tensor_name_map`` remember what they made."""
    with _LOCK:
        reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
        if not isinstance(reader, type):  # within another
            yield
            return
        gguf.GGUFReader = functools.lru_cache(maxsize=1)(_plain(reader))
        gguf.get_tensor_name_map = functools.lru_cache(maxsize=8)(names)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def _plain(reader: Any) -> Any:
    """The reader over the same mapped bytes as a plain array: taking apart a ``memmap``, as is done
    for every token, costs several times as much."""

    class Reader(reader):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return Reader

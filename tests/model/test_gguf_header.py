"""The header of a GGUF file is what the gguf package reads, and a damaged one is an error whatever is damaged."""

import struct

import gguf
import numpy as np
import pytest

from pycotmech.model.gguf_header import read_header
from tests.reference.gguf_files import written

KINDS = ("Q4_0", "Q5_0", "Q8_0", "F16", "F32")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "ä", "▁the", ""])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_array("llama.counts", [3, 1, 4])
    writer.add_bool("llama.flag", True)
    for kind in KINDS:
        array = rng.normal(size=(3, 64)).astype(np.float32)
        number = gguf.GGMLQuantizationType[kind]
        if kind == "F32":
            writer.add_tensor(kind, array)
        elif kind == "F16":
            writer.add_tensor(kind, array.astype(np.float16))
        else:
            writer.add_tensor(kind, gguf.quants.quantize(array, number), raw_dtype=number)
    written(writer)
    return path


def test_it_is_what_the_gguf_package_reads(path):
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert ours.values["tokenizer.ggml.tokens"] == ["a", "ä", "▁the", ""]
    assert ours.values["tokenizer.ggml.scores"] == [0.5, -1.0, 2.0, 0.0]
    assert ours.values["llama.counts"] == [3, 1, 4] and ours.values["llama.flag"] is True
    assert ours.values["llama.context_length"] == 512
    assert ours.values["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert set(ours.values) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.kind == tensor.tensor_type and found.shape == tuple(reversed(tensor.shape.tolist()))
        assert found.n_elements == tensor.n_elements
        np.testing.assert_array_equal(
            gguf.quants.dequantize(found.data, found.kind), gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        )


def test_a_file_that_ends_early_is_an_error_wherever_it_ends(path, tmp_path):
    whole = path.read_bytes()
    for n in range(0, len(whole), 7):
        short = tmp_path / "short.gguf"
        short.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"not a GGUF file|truncated or damaged|version"):
            read_header(short)


def test_flipped_bits_give_another_header_or_one_clear_error(path, tmp_path):
    """Never another exception, an endless loop or memory without end."""
    whole, rng, refused = bytearray(path.read_bytes()), np.random.default_rng(0), 0
    begin = whole.index(b"general.architecture")
    for _ in range(400):
        at, bit = int(rng.integers(4, begin + 900)), int(rng.integers(8))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        other = tmp_path / "other.gguf"
        other.write_bytes(damaged)
        try:
            read_header(other)
        except ValueError as error:
            refused += 1
            assert str(other) in str(error) and len(str(error)) < 400
    assert refused > 100


def test_arrays_within_arrays_are_refused_however_deep(tmp_path):
    deep = tmp_path / "deep.gguf"
    key = struct.pack("<Q1sI", 1, b"a", 9)  # an array under the name a
    deep.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 9, 1) * 20_000)
    with pytest.raises(ValueError, match=r"damaged .*an array of arrays"):
        read_header(deep)


def test_the_same_name_twice_is_an_error(path, tmp_path):
    whole = path.read_bytes()
    twice = tmp_path / "twice.gguf"
    twice.write_bytes(whole.replace(b"Q5_0", b"Q4_0"))
    with pytest.raises(ValueError, match="has the tensor Q4_0 twice"):
        read_header(twice)

"""Configurations with which no model can be built: one error that names the field, soon."""

import json
import math
import time

import gguf
import pytest

from pycotmech.model.config_check import check_config
from pycotmech.model.loading import load
from tests.model.test_gguf import gguf_tensors, write
from tests.reference.tiny import tiny_llama

NOT_COUNTS = (None, 0, -1, 2.5, "x", True, [1], {"a": 1})
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BAD = [
    *((field, value) for field in COUNTS for value in NOT_COUNTS),
    *((field, value) for field in ("num_key_value_heads", "head_dim") for value in NOT_COUNTS if value is not None),
    ("num_hidden_layers", 10**7),
    ("num_hidden_layers", 10**30),
    ("num_hidden_layers", 5),
    ("num_key_value_heads", 3),
    ("head_dim", 1),
    ("head_dim", 33),
    *(("rms_norm_eps", value) for value in (None, -1, "x", True, math.nan, math.inf, [1])),
    *(("hidden_act", value) for value in (None, "nope", 3)),
    *(("pad_token_id", value) for value in (248, 10**6, -2, "x", 1.5, True, [1])),
    *(("attention_dropout", value) for value in (2, -1, "x", True)),
    *((field, value) for field in ("attention_bias", "mlp_bias", "tie_word_embeddings") for value in ("x", 3, None)),
    *(("dtype", value) for value in ("int4", "float8", 3)),
    *(("rope_parameters", value) for value in (3, "x", [])),
    *(("rope_parameters", {**ROPE, "rope_type": value}) for value in ("nope", 3, None)),
    *(("rope_parameters", {**ROPE, "rope_theta": value}) for value in (-1, 0, "x", math.nan)),
    *(("rope_parameters", {"rope_type": "linear", **ROPE, "factor": value}) for value in (-2, 0, "x", True)),
    ("rope_parameters", {**ROPE, "rope_type": "linear"}),
    ("rope_parameters", {**ROPE, "rope_type": "llama3"}),
    ("rope_parameters", {"full_attention": ROPE, "sliding_attention": {**ROPE, "rope_type": "nope"}}),
    ("rope_scaling", {"type": "nope", "factor": 2.0}),
    ("rope_scaling", 3),
    ("rope_theta", -1),
    ("bos_token_id", "x"),
    ("eos_token_id", 1.5),
    ("initializer_range", "x"),
    ("use_cache", "x"),
]


SOON = 5.0
"""Seconds of processor time: a refusal takes hundredths, building what is asked for would take hours. The rest is room for a
collection of garbage and for a loaded machine."""


@pytest.fixture(scope="module")
def folder(tiny_cot_path, tmp_path_factory):
    """tiny-cot's weights, whose config.json each test writes anew."""
    path = tmp_path_factory.mktemp("fields")
    for file in tiny_cot_path.iterdir():
        if file.name != "config.json":
            (path / file.name).symlink_to(file)
    load(tiny_cot_path)  # what is imported at the first use does not count
    return path


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_field_that_no_model_can_have(field, value, folder, tiny_cot_path):
    config = json.loads((tiny_cot_path / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    started = time.process_time()
    with pytest.raises(ValueError) as caught:
        load(folder)
    assert time.process_time() - started < SOON
    message = str(caught.value)
    assert field in message.replace("`rope_parameters`", "rope_parameters") and "\n" not in message and len(message) < 600
    assert str(folder) in message


def test_what_is_right_stays(folder, tiny_cot_path):
    config = json.loads((tiny_cot_path / "config.json").read_text())
    check_config(config, source="config", layers=4)
    check_config({}, source="config")
    for change in ({"num_key_value_heads": None}, {"pad_token_id": None}, {"pad_token_id": -1}, {"rope_scaling": None}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert load(folder).model.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("llama.block_count", 10**9, "uint32"),
        ("llama.block_count", 3, "uint32"),
        ("llama.block_count", 0, "uint32"),
        ("llama.attention.head_count", 0, "uint32"),
        ("llama.attention.head_count", "x", "string"),
        ("llama.attention.head_count_kv", 0, "uint32"),
        ("llama.attention.head_count_kv", 3, "uint32"),
        ("llama.embedding_length", 0, "uint32"),
        ("llama.feed_forward_length", 0, "uint32"),
        ("llama.context_length", 0, "uint32"),
        ("llama.attention.layer_norm_rms_epsilon", math.nan, "float32"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "float32"),
        ("llama.rope.freq_base", -1.0, "float32"),
        ("llama.rope.freq_base", 0.0, "float32"),
        ("llama.rope.freq_base", "x", "string"),
    ],
)
def test_a_gguf_file_with_such_a_field(key, value, kind, tmp_path):
    model, path = tiny_llama(), tmp_path / "m.gguf"

    class Writer(gguf.GGUFWriter):
        def add_key_value(self, name, *args, **kwargs):
            if name != key or args[0] == value or args[0] is value:
                super().add_key_value(name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Writer)
        write(path, model, tensors=gguf_tensors(model), keys=[(key, value, f"add_{kind}")])
    started = time.process_time()
    with pytest.raises(ValueError) as caught:
        load(path)
    assert time.process_time() - started < SOON
    message = str(caught.value)
    field = "rope" if "rope" in key else key
    assert field in message and str(path) in message and "\n" not in message

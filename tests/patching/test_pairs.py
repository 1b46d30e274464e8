"""Pairs: alignment, words in context."""

import pytest

import pycotmech as pcm
from pycotmech.patching.pairs import answer_token


def test_check_pair_shows_where_prompts_part():
    report = pcm.check_pair([1, 2, 3, 4], [1, 9, 3, 8])
    assert report.aligned and report.differs == [1, 3] and report.lengths == (4, 4)
    assert "aligned: 4 tokens each" in str(report) and "2 -> 9" in str(report)
    report = pcm.check_pair([1, 2, 3], [1, 2, 5, 6])
    assert not report.aligned and report.differs == [2] and "not aligned: 3 tokens against 4" in str(report)
    with pytest.raises(ValueError, match="clean: got a string"):
        pcm.check_pair("a", "b")


def test_check_pair_with_a_model():
    model = pcm.Model.from_pretrained("tiny-cot")
    report = pcm.check_pair("Max is a wumpus.", "Rex is a wumpus.", model=model)
    assert report.aligned and report.differs == [1] and "'Max' -> 'Rex'" in str(report)


def test_a_word_stands_for_its_first_token_in_context():
    model = pcm.Model.from_pretrained("tiny-cot")
    tokens = model.to_tokens("Max is a")
    vocabulary = model.tokenizer.get_vocab()
    assert answer_token(model, "Max is a", "wumpus", 3, tokens, "answer") == vocabulary["wumpus"]
    assert answer_token(model, "Max is a", " wumpus", 3, tokens, "answer") == vocabulary["wumpus"]
    assert answer_token(model, tokens, "Max", 3, tokens, "answer") == vocabulary["Max"]
    sweep = pcm.patch_heads(
        model, "Max is a wumpus. Max is a", "Max is a rompus. Max is a", metric="logit_diff", answer="wumpus", wrong="rompus"
    )
    assert sweep.clean_metric[0] > sweep.corrupted_metric[0] + 1

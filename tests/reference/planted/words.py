"""The vocabulary of the planted models, one token per word, and a tokenizer that cuts at spaces."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

MARKS = ("<s>", "</s>", ".", "is", "not", "who", "so", "=")
NAMES = ("Fae", "Rex", "Sally", "Max", "Alex", "Sam", "Polly", "Stella", "Wren")
CONCEPTS = (
    "wumpus", "yumpus", "zumpus", "dumpus", "rompus", "numpus", "tumpus", "vumpus", "impus", "jompus", "gorpus", "shumpus",
    "lempus", "sterpus", "grimpus", "lorpus", "brimpus",
)  # fmt: skip
PROPERTIES = ("blue", "red", "small", "large", "happy", "shy", "sweet", "sour", "hot", "cold", "kind", "mean", "loud", "slow")
WORDS = (*MARKS, *NAMES, *CONCEPTS, *PROPERTIES)
ID = {word: i for i, word in enumerate(WORDS)}
BOS = ID["<s>"]

N_WORDS = len(WORDS)


def ids(words: tuple[str, ...]) -> list[int]:
    return [ID[word] for word in words]


CONTENT = ids((*NAMES, *CONCEPTS, *PROPERTIES))
"""Everything but the marks."""


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(ID, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")

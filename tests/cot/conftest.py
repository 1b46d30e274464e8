"""Tokenizers of three kinds: whole words, byte-level BPE, and SentencePiece-like BPE with a BOS."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_CORPUS = [
    "Every animal is a mammal. The lamp is bright and the wren is happy. Since every dog is large, Max is large.",
    "True or false: Sally is cold. Answer: Sally is cold. Let us think step by step. Input Response",
    "pus opus campus rumpus puss impulse stump lump gum jump bump thumb simple lorry grim brim shun sterling",
    " ".join("abcdefghijklmnopqrstuvwxyz" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
] * 20


@pytest.fixture(scope="session")
def tiny_cot(tiny_cot_path):
    """The word-level tokenizer of the shipped tiny-cot model."""
    return AutoTokenizer.from_pretrained(tiny_cot_path)


@pytest.fixture(scope="session")
def sentencepiece_like():
    """BPE as Llama-2 has it: "▁" for a space, one in front of the text, bytes for the rest, and a BOS."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # Learned word by word, so that no piece spans two words; at run time nothing keeps words apart.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    tokenizer.train_from_iterator([*_CORPUS, "# : . ,"], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def byte_bpe():
    """Byte-level BPE with few merges, without BOS or unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def trimmed_bpe(byte_bpe):
    """byte_bpe, but a token's characters do not include the space in front of it."""
    tokenizer = Tokenizer.from_str(byte_bpe.backend_tokenizer.to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(params=["tiny_cot", "smollm2", "sentencepiece_like", "byte_bpe"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="session")
def qwen_like():
    """Byte-level BPE as Qwen has it: punctuation takes the line ends after it along; neither BOS nor unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([*_CORPUS, "bright.\n\nEvery cold:\nMax"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def metaspace_like(sentencepiece_like):
    """sentencepiece_like as later conversions of Llama 2 and Mistral write it: "▁" before the first piece alone, also where
    special tokens follow."""
    tokenizer = Tokenizer.from_str(sentencepiece_like.backend_tokenizer.to_str())
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def gemma_like(sentencepiece_like):
    """sentencepiece_like as Gemma has it: "▁" for a space, none before the text."""
    tokenizer = Tokenizer.from_str(sentencepiece_like.backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

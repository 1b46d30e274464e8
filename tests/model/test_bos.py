"""Every text begins with BOS as often as its model expects: never twice, and as the published tokenizer says."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import pycotmech as pcm
from pycotmech.model.loading import load
from pycotmech.traces import Trace
from tests.reference.small_families import small
from tests.reference.tiny import tiny_llama

BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
"""What the template of R1-Distill writes, without tools."""
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


def backend(*, adds_bos: bool) -> Tokenizer:
    """A byte-level BPE with the special tokens of R1-Distill-Qwen. adds_bos: whether tokenizer.json puts BOS before a text."""
    out = Tokenizer(models.BPE())
    out.pre_tokenizer, out.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    out.train_from_iterator(
        ["so 2 + 2 is 4."], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    out.add_special_tokens([AddedToken(BEGIN, normalized=False), AddedToken(END, normalized=False)])
    out.add_tokens([AddedToken(name, normalized=False) for name in (USER, ASSISTANT, "<think>", "</think>")])
    bos = (BEGIN, out.token_to_id(BEGIN))
    template = processors.TemplateProcessing(single=f"{BEGIN}:0 $A:0", pair=f"{BEGIN}:0 $A:0 $B:1", special_tokens=[bos])
    out.post_processor = template if adds_bos else processors.ByteLevel()
    return out


def reasoner(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    out = PreTrainedTokenizerFast(tokenizer_object=backend(adds_bos=adds_bos), bos_token=BEGIN, eos_token=END)
    out.chat_template = R1_TEMPLATE
    return out


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_text_of_a_chat_template_has_the_tokens_that_the_template_gives(adds_bos, prepend_bos):
    tokenizer = reasoner(adds_bos=adds_bos)
    model = pcm.Model(tiny_llama(d_vocab=400), tokenizer, prepend_bos=prepend_bos)
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert model.to_tokens(text).tolist() == expected and expected.count(tokenizer.bos_token_id) == 1
    trace = Trace.from_messages(
        model, [*MESSAGES, {"role": "assistant", "content": "<think>\nso 2 is 2. so 4.\n</think>\n\n4"}]
    )
    assert trace.tokens[: len(expected)].tolist() == expected
    first = trace.sentences[0]
    assert trace.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(trace.tokens[first.start : first.stop]).strip() == "so 2 is 2."


@pytest.mark.parametrize("prepend_bos", [None, True])
def test_where_a_template_writes_no_bos_none_is_added(prepend_bos):
    """ChatML with a tokenizer that puts a BOS before plain texts: the model saw none."""
    tokenizer = reasoner(adds_bos=True)
    tokenizer.chat_template = R1_TEMPLATE.removeprefix("{{ bos_token }}")
    model = pcm.Model(tiny_llama(d_vocab=400), tokenizer, prepend_bos=prepend_bos)
    bos = tokenizer.bos_token_id
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert model.to_tokens("so").tolist()[0] == bos and bos not in expected
    conversation = [*MESSAGES, {"role": "assistant", "content": "<think>\nso 2 is 2. so 4.\n</think>\n\n4"}]
    trace = Trace.from_messages(model, conversation)
    assert trace.tokens[: len(expected)].tolist() == expected and bos not in trace.tokens.tolist()
    first = trace.sentences[0]
    assert tokenizer.decode(trace.tokens[first.start : first.stop]).strip() == "so 2 is 2."
    with_one = Trace.from_messages(model, conversation, bos=True)
    assert with_one.tokens.tolist() == [bos, *trace.tokens.tolist()]
    assert [(s.start - 1, s.stop - 1, s.text) for s in with_one.sentences] == [
        (s.start, s.stop, s.text) for s in trace.sentences
    ]
    texts = ("so 2 + 2?", "<think>\nso 2 is 2.\n</think>\n\n4")
    plain, without = Trace.from_text(model, *texts), Trace.from_text(model, *texts, bos=False)
    assert plain.tokens.tolist() == [bos, *without.tokens.tolist()]
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos: got True, but the tokenizer has no BOS"):
        Trace.from_text(model, *texts, bos=True)


@pytest.mark.parametrize(("adds_bos", "prepend_bos", "begins"), [
    (True, None, True), (False, None, False), (False, True, True), (True, False, False), (True, True, True),
])  # fmt: skip
def test_a_plain_text_has_one_bos_or_none(adds_bos, prepend_bos, begins):
    tokenizer = reasoner(adds_bos=adds_bos)
    model = pcm.Model(tiny_llama(d_vocab=400), tokenizer, prepend_bos=prepend_bos)
    ids = model.to_tokens("so 2").tolist()
    assert ids.count(tokenizer.bos_token_id) == begins and (ids[0] == tokenizer.bos_token_id) == begins


def test_a_text_that_has_two_keeps_both():
    tokenizer = reasoner(adds_bos=True)
    model = pcm.Model(tiny_llama(d_vocab=400), tokenizer)
    assert model.to_tokens(2 * BEGIN + "so").tolist().count(tokenizer.bos_token_id) == 3  # as the tokenizer has it


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_published_llama_tokenizer_does_what_its_configuration_says(tmp_path, adds_bos, declared, kind):
    """R1-Distill-Qwen: add_bos_token is true, its tokenizer.json adds none, and transformers 5 reads the latter alone."""
    small("qwen2", vocab_size=400).save_pretrained(tmp_path)
    backend(adds_bos=adds_bos).save(str(tmp_path / "tokenizer.json"))
    fields = dict(add_bos_token=declared, bos_token=BEGIN, eos_token=END, tokenizer_class=kind, unk_token=None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields), "utf-8")
    loaded = load(tmp_path)
    honoured = kind == "LlamaTokenizerFast"
    model = pcm.Model.from_pretrained(tmp_path)
    begins = declared if honoured else adds_bos
    assert (model.to_tokens("so 2")[0] == loaded.tokenizer.bos_token_id) == begins
    assert loaded.prepend_bos == (declared if honoured and declared != adds_bos else None)
    assert any("add_bos_token" in note for note in loaded.notes) == (loaded.prepend_bos is not None)

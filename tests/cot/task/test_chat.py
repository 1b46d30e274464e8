"""Examples in the chat templates of instruction and reasoning models."""

import pytest
from transformers import PreTrainedTokenizerFast

from pycotmech.cot import make_examples
from tests.cot.task.promises import check

SLOW = pytest.mark.slow

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_CLOSED = CHATML.replace(
    "assistant\n' }}{%", "assistant\n' }}{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{%"
)
"""A model that can be told not to think: its template then writes an empty block."""
OPENED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
"""A model that always thinks: its template opens the block."""
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start>' + m['role'] + '\n' + m['content'] | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
CASES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], (False, True)),
    "chatml_closed": (CHATML_CLOSED, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], (False, True)),
    "opened": (OPENED, ["<|user|>", "<|assistant|>", "<think>"], (True,)),
    "inst": (INST, [], (False, True)),
    "turns": (TURNS, ["<start>", "<end>"], (False, True)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=["qwen_like", "sentencepiece_like", "metaspace_like"])
def base(request):
    return request.getfixturevalue(request.param)


def with_template(tokenizer, template, special=()):
    copy = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token=tokenizer.bos_token or "<|endoftext|>",
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
    )
    copy.add_special_tokens({"additional_special_tokens": list(special)})
    copy.chat_template = template
    return copy


@pytest.mark.parametrize(
    ("style", "shots"),
    [("every", 0), pytest.param("every", 2, marks=SLOW), ("paper", 2), pytest.param("each", 0, marks=SLOW), ("all", 1)],
)
def test_no_violation_in_any_template(base, case, style, shots):
    template, special, thinking = case
    tokenizer = with_template(base, template, special)
    for think in thinking:
        examples = make_examples(2, tokenizer=tokenizer, template="chat", think=think, style=style, shots=shots)
        check(examples, tokenizer)
        for example in examples:
            assert example.prompt.endswith("<think>\n") == think


def test_prompts_are_the_tokens_of_the_template(base, case):
    template, special, thinking = case
    tokenizer = with_template(base, template, special)
    think = thinking[-1]
    examples = make_examples(2, tokenizer=tokenizer, template="chat", think=think, shots=1)
    front = make_examples(1, tokenizer=tokenizer, template="chat", think=think, shots=0).few_shot
    for example in examples:
        shown = example.prompt[len(front) :]
        messages = [{"role": "user", "content": shown[: shown.rindex("Answer:") + len("Answer:")]}]
        options = dict(add_generation_prompt=True, enable_thinking=think)
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        assert example.prompt == text + ("<think>\n" if think and not text.endswith("<think>\n") else "")
        if example.prompt == text:
            assert example.steps[0].clean.tolist() == ids
        assert example.full_text.startswith(example.prompt)
        assert tokenizer.decode(example.full_ids[example.segments["generated"]]).strip() == example.chain


def test_a_template_without_thinking_goes_on_from_its_own_tokens(base):
    """Where the template has a space before the assistant's words, the prompt ends before it as in plain text."""
    tokenizer = with_template(base, INST)
    example = make_examples(1, tokenizer=tokenizer, template="chat", shots=1)[0]
    assert example.prompt.endswith(" Answer: [/INST]")
    assert example.full_text == f"{example.prompt} {example.chain}"
    messages = [{"role": "user", "content": example.prompt.removeprefix("<s>[INST] ").removesuffix(" [/INST]")}]
    if tokenizer.bos_token == "<s>":
        assert example.steps[0].clean.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_real_template(smollm2):
    """SmolLM2's own writes a system message, which all examples share."""
    for think in (False, True):
        examples = make_examples(2, tokenizer=smollm2, template="chat", think=think, shots=4)
        check(examples, smollm2)
        assert examples.few_shot.startswith("<|im_start|>system\n")
        ending = "Answer:<|im_end|>\n<|im_start|>assistant\n" + ("<think>\n" if think else "")
        assert all(e.prompt.endswith(ending) for e in examples)
        assert all(e.steps[0].segments["few_shot"].stop == len(examples.shared_ids) for e in examples)
        assert (examples.template, examples.think) == ("chat", think)
        assert "template='chat'" in repr(examples)


def test_words_are_those_of_plain_text(smollm2):
    """The template surrounds the problem; it does not change it unless words are cut differently beside it."""
    plain = make_examples(3, tokenizer=smollm2, style="paper", shots=2)
    chat = make_examples(3, tokenizer=smollm2, style="paper", shots=2, template="chat")
    assert chat.few_shot.endswith(plain.few_shot)
    assert [e.question for e in chat] == [e.question for e in plain]


def test_a_bos_of_the_template_is_the_only_one(sentencepiece_like):
    tokenizer = with_template(sentencepiece_like, TURNS, ["<start>", "<end>"])
    for bos in (None, True):
        examples = make_examples(2, tokenizer=tokenizer, template="chat", bos=bos, shots=1)
        assert examples.bos
        assert all(e.full_ids.tolist().count(tokenizer.bos_token_id) == 1 for e in examples)
        assert all(s.segments["few_shot"].start == 1 for e in examples for s in e.steps)
    chatml = with_template(sentencepiece_like, CHATML)
    assert chatml("x")["input_ids"][0] == tokenizer.bos_token_id  # the tokenizer puts one before a plain text
    without = make_examples(2, tokenizer=chatml, template="chat", shots=1)
    assert not without.bos and tokenizer.bos_token_id not in without[0].full_ids.tolist()
    with_one = make_examples(2, tokenizer=with_template(sentencepiece_like, CHATML), template="chat", shots=1, bos=True)
    assert with_one[0].full_ids[0] == tokenizer.bos_token_id


def test_errors_name_the_argument(smollm2, tiny_cot, sentencepiece_like):
    def bad(match, tokenizer, error=ValueError, **kwargs):
        with pytest.raises(error, match=match):
            make_examples(1, tokenizer=tokenizer, **{"template": "chat", "shots": 1, **kwargs})

    bad("template: got 'chat', but the tokenizer has no chat template", tiny_cot)
    bad("template: got 'chatml'; expected one of chat; did you mean 'chat'", smollm2, template="chatml")
    bad("think: got True without a template", smollm2, template=None, think=True)
    bad("think must be True or False, got 'yes'", smollm2, error=TypeError, think="yes")
    opened = with_template(sentencepiece_like, OPENED)
    bad("think: got False, but the tokenizer's chat template opens a <think> block itself", opened)
    bad("bos: got False, but the tokenizer's chat template writes a BOS", opened, think=True, bos=False)
    bad("writes the user's message 0 times", with_template(sentencepiece_like, "nothing"))
    bad("chat template fails on 'user' messages: no", with_template(sentencepiece_like, "{{ raise_exception('no') }}"))
    shouting = CHATML.replace("m['content']", "m['content'] | replace('True', 'TRUE')")
    bad("changes the user's message", with_template(sentencepiece_like, shouting))


def test_unknown_pieces_of_a_template(tiny_cot):
    """A word-level tokenizer knows no header of a chat."""
    with pytest.raises(ValueError, match="the tokenizer does not know"):
        make_examples(1, tokenizer=with_template(tiny_cot, CHATML), template="chat", shots=0)

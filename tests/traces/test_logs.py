"""Lines of logs as they are: marks of answers, conversations that a template refuses, lines of which no trace can be made."""

from __future__ import annotations

import json

import pytest

import pycotmech as pcm
from pycotmech.traces import Trace
from pycotmech.traces.reading import answer_in
from tests.reference.planted.words import tokenizer
from tests.reference.tiny import tiny_llama

PROMPT, CHAIN = "Fae is Max . who is Sam . ", "Fae is small . Max is red . so Sam is hot . "


@pytest.fixture(scope="module")
def chat():
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content + ' . ' }}{% endfor %}{% if tools %}{{ tools[0].name }} {% endif %}so <think> "
    )
    return pcm.Model(tiny_llama(d_vocab=48), words, name="chat", prepend_bos=True)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The answer is: 12.", "12"), ("**The answer is:** 12", "12"), ("**Answer**: 12", "12"), ("Answer: $12$.", "12"),
        ("The answer is $x$ and $y$.", "$x$ and $y$"), ("所以答案是12。", "12"),
        ("**答案**：12。好", "12"), ("答案为：12", "12"),
        ("The answer isn't here", None), ("#### $7$", "7"),
    ],
)  # fmt: skip
def test_marks_of_answers(text, want):
    found = answer_in(text, None)
    assert (None if found is None else text[slice(*found)]) == want


@pytest.mark.filterwarnings("ignore:.*unknown to the tokenizer")
def test_what_a_template_does_with_a_conversation(chat):
    user, said = {"role": "user", "content": "who is Fae"}, {"role": "assistant", "content": f"{CHAIN}</think> red"}
    trace = Trace.from_messages(chat, [user, said], answer="red", splitter="published", tools=[{"name": "Sam"}])
    assert trace.text.startswith("who is Fae . Sam so <think>") and trace.n_sentences == 3
    with pytest.raises(
        ValueError, match=r"messages: .* template refuses them \(no system role\); their roles are system, user"
    ):
        Trace.from_messages(chat, [{"role": "system", "content": "x"}, user, said])
    with pytest.raises(ValueError, match="messages: the model's chat template refuses them"):
        Trace.from_messages(chat, [user, {"role": "assistant", "content": None, "tool_calls": []}, said])
    with pytest.raises(TypeError, match="tools: got str; expected a list"):
        Trace.from_messages(chat, [user, said], tools="f")
    with pytest.raises(ValueError, match="</think> is missing, and the prompt ends with <think>"):
        Trace.from_messages(chat, [user, {"role": "assistant", "content": CHAIN}])


@pytest.mark.filterwarnings("ignore:.*unknown to the tokenizer")
def test_a_second_block_of_reasoning_is_no_cue(chat):
    with pytest.raises(ValueError, match=r"completion: reasons again after its first </think> \(2 times <think>\)"):
        Trace.from_text(chat, PROMPT, f"<think>{CHAIN}</think> so <think>{CHAIN}</think> cold", answer="cold")
    closed_twice = f"<think>{CHAIN}</think> so </think> cold"
    assert Trace.from_text(chat, PROMPT, closed_twice, answer="cold", splitter="published").n_sentences == 3


def test_all_lines_of_which_no_trace_can_be_made_are_named_or_left_out(chat, tmp_path):
    good = {"prompt": PROMPT, "completion": CHAIN + "so cold", "answer": "cold", "splitter": "published"}
    lines = [good, good | {"completion": f"<think>{CHAIN}"}, good | {"answer": 7}, {"prompt": PROMPT}, good | {"name": "last"}]
    file = tmp_path / "log.jsonl"
    written = list(map(json.dumps, lines))
    written[3] = written[3][:-1]
    file.write_text("\r\n\r\n".join(written))
    with pytest.raises(ValueError, match=r"line 3: .* no end.* \(no trace can be made of 2 more of its 5 lines either: 5, 7\)"):
        Trace.from_jsonl(chat, file)
    skipped: list[tuple[int, str]] = []
    found = Trace.from_jsonl(chat, file, skip=lambda *line: skipped.append(line))
    assert [t.name for t in found] == ["1", "last"] and [n for n, _ in skipped] == [3, 5, 7]
    assert skipped[1][1].startswith("answer: got 7") and skipped[2][1].startswith("no JSON")
    file.write_text(json.dumps(lines[1]))
    with pytest.raises(ValueError, match=r"line 1: .* no end"):
        Trace.from_jsonl(chat, file, skip=lambda *line: None)

"""Traces from texts, messages, files and a model's own generation: parts, tokens, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.traces import Trace
from pycotmech.traces.reading import answer_in, token_spans
from tests.reference.planted.words import tokenizer
from tests.reference.tiny import tiny_llama
from tests.traces.cases import random_trace, tiny

PROMPT = "Fae is Max . who is Sam ? "
CHAIN = "Fae is small . Max is red . so Sam is hot . "


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(d_vocab=48), tokenizer(), name="words", prepend_bos=True)


def words(trace: Trace, model) -> list[str]:
    return [model.tokenizer.decode(trace.tokens[s.start : s.stop]) for s in trace.sentences]


@pytest.mark.filterwarnings("ignore:.*unknown to the tokenizer")
class TestFromText:
    def test_the_answers_sentence_ends_the_reasoning_where_there_are_no_tags(self, model):
        trace = Trace.from_text(model, PROMPT, CHAIN + "So the answer is cold .", answer="cold", splitter="published")
        assert words(trace, model) == ["Fae is small .", "Max is red .", "so Sam is hot ."]
        assert model.tokenizer.decode(trace.answer_tokens) == "cold"
        assert trace.prompt == slice(0, 9)  # BOS and the words of the prompt
        assert trace.text[: trace.n_prompt] == PROMPT
        assert [s.text.strip() for s in trace.sentences] == words(trace, model)

    def test_tags_hold_the_reasoning(self, model):
        for completion in (f"<think> {CHAIN} </think> cold", f"{CHAIN} </think> cold"):
            prompt = PROMPT if completion.startswith("<think>") else PROMPT + "<think> "
            trace = Trace.from_text(model, prompt, completion, answer="cold", splitter="published")
            assert [len(s) for s in trace.sentences] == [4, 4, 5]
            assert model.tokenizer.decode(trace.answer_tokens) == "cold"
            assert len(trace.cue) == 1

    def test_spans_follow_one_another_and_cover_the_reasoning(self, model):
        trace = Trace.from_text(model, PROMPT, CHAIN + "so it is cold .", answer="cold", splitter="published")
        spans = trace.spans()
        assert (spans[1:, 0] == spans[:-1, 1]).all()
        labels = trace.labels()
        assert labels[: spans[0, 0]].eq(-1).all() and labels[trace.reasoning].ge(0).all()

    def test_own_sentences_as_texts_characters_or_tokens(self, model):
        completion = CHAIN + "so cold"
        texts = ["Fae is small . Max is red .", "so Sam is hot ."]
        a = Trace.from_text(model, PROMPT, completion, answer="cold", sentences=texts, splitter="published")
        starts = [len(PROMPT) + completion.index(t) for t in texts]
        ranges = [(s, s + len(t)) for s, t in zip(starts, texts)]
        b = Trace.from_text(model, PROMPT, completion, answer="cold", sentences=ranges, splitter="published")
        spans = [(int(x), int(y)) for x, y in a.spans()]
        c = Trace.from_text(model, PROMPT, completion, answer="cold", sentences=spans, unit="tokens", splitter="published")
        assert len(a.sentences[0]) == 8
        assert a.spans().tolist() == b.spans().tolist() == c.spans().tolist()

    def test_categories_stay_with_their_sentences(self, model):
        kinds = ["plan", None, "check"]
        trace = Trace.from_text(model, PROMPT, CHAIN + "so cold", answer="cold", categories=kinds, splitter="published")
        assert [s.category for s in trace.sentences] == kinds
        with pytest.raises(ValueError, match="categories: got 2 for 3"):
            Trace.from_text(model, PROMPT, CHAIN + "so cold", answer="cold", categories=kinds[:2], splitter="published")

    def test_without_an_answer_all_is_reasoning(self, model):
        trace = Trace.from_text(model, PROMPT, CHAIN, splitter="published")
        assert trace.answer is None and trace.n_sentences == 3
        with pytest.raises(ValueError, match="has no answer"):
            _ = trace.cue

    def test_errors_say_what_is_missing(self, model):
        with pytest.raises(ValueError, match="completion: the reasoning has no end"):
            Trace.from_text(model, PROMPT, "<think> Fae is small .", splitter="published")
        with pytest.raises(ValueError, match="answer: 'blue' is not in the completion"):
            Trace.from_text(model, PROMPT, CHAIN, answer="blue", splitter="published")
        with pytest.raises(ValueError, match="stands in the first sentence"):
            Trace.from_text(model, PROMPT, "it is cold", answer="cold", splitter="published")
        with pytest.raises(ValueError, match=r"sentences\[1\]: got"):
            at = len(PROMPT)
            Trace.from_text(model, PROMPT, CHAIN, sentences=[(at, at + 9), (at + 4, at + 12)], splitter="published")
        with pytest.raises(ValueError, match="unit: got 'words'"):
            Trace.from_text(model, PROMPT, CHAIN, unit="words", splitter="published")
        with pytest.raises(ValueError, match="no tokenizer"):
            Trace.from_text(tiny(), "a", "b. c.")

    def test_a_slow_tokenizer_is_refused_with_the_way_out(self, model):
        class Slow:
            is_fast, bos_token_id = False, None

            def __call__(self, text):
                return {"input_ids": [3]}

        slow = pcm.Model(tiny_llama(d_vocab=48), Slow(), name="slow")
        with pytest.raises(ValueError, match="gives no offsets"):
            Trace.from_text(slow, "a", "b. c.")


@pytest.mark.filterwarnings("ignore:.*more than the 256")
def test_ten_thousand_tokens(model):
    trace = Trace.from_text(model, PROMPT.replace("?", "is"), CHAIN * 800 + "so cold", answer="cold", splitter="published")
    assert len(trace) > 10_000 and trace.n_sentences == 2400


def test_marked_answers_are_found():
    assert answer_in(r"so \boxed{42}. The answer is 7.", None) == (10, 12)
    for text, want in [
        ("Thus the answer is 3.5.", "3.5"), ("**Answer: Paris**", "Paris"), ("x\n#### 18\n", "18"),
        ("The answer is A. The answer is B.", "B"), (r"\boxed{1}, so \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4", "3"), (r"\boxed{}: the answer is 5.", "5"), (r"\boxed{\text{a \{b\}}}", r"\text{a \{b\}}"),
    ]:  # fmt: skip
        a, b = answer_in(text, None)
        assert text[a:b] == want
    assert answer_in("nothing here", None) is None and answer_in("\\boxed{" * 50_000, None) is None
    assert answer_in("12 and 2", "2") == (7, 8)  # as a word of its own


def test_a_token_is_in_the_sentence_of_its_first_character_that_is_no_white_space():
    text = "Q A. B. C."
    offsets = [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7), (7, 10)]  # " A", ".", " B", ".", " C."
    spans, kept = token_spans(text, offsets, [(2, 5), (5, 8), (8, 10)])
    assert spans == [(1, 3), (3, 5), (5, 6)] and kept == [0, 1, 2]
    spans, kept = token_spans(text, [(0, 2), (2, 10)], [(2, 5), (5, 8), (8, 10)])
    assert spans == [(1, 2)] and kept == [0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"answer": 4}, "answer: got 4 of type int; expected a text, such as '4'"),
        ({"answer": ["hot"]}, r"answer: got \['hot'\] of type list; expected a text$"),
        ({"sentences": "Fae is small ."}, "sentences: got str; expected a list"),
        ({"sentences": []}, "sentences: got none"),
        ({"sentences": ["Fae is small .", [1, 2]]}, r"sentences\[0\]: got 'Fae is small .'; expected two integers"),
        ({"sentences": [[27, 30, 33]]}, r"sentences\[0\]: got \[27, 30, 33\]; expected two integers"),
        ({"sentences": [[27.5, 30.0]]}, r"sentences\[0\]: got .*; expected two integers"),
        ({"sentences": [None]}, r"sentences\[0\]: got None"),
        ({"sentences": ["Fae is small ."], "unit": "tokens"}, r"sentences\[0\]: got the text"),
        ({"sentences": ["Fae is small .", "so cold"]}, r"sentences\[1\]: 'so cold' stands after the reasoning"),
        (
            {"sentences": [[9, 24]], "unit": "tokens"},
            "sentences: the last one ends at token 24, but the answer stands at 23..23",
        ),
        ({"categories": "abc"}, "categories: got str"),
        ({"categories": [1, 2, 3]}, r"categories\[0\]: got 1 of type int"),
        ({"seed": "x"}, "seed: got 'x'; expected an integer"),
    ],
)
def test_a_line_that_does_not_fit_says_what_came_and_what_was_expected(model, tmp_path, options, why):
    record = {"prompt": PROMPT.replace("?", "is"), "completion": CHAIN + "so cold", "answer": "cold", "splitter": "published"}
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(record | options))
    with pytest.raises(ValueError, match=f"line 1: {why}"):
        Trace.from_jsonl(model, file)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", "messages: got str"), ([], "messages: the list is empty"), (["hello"], r"messages\[0\]: got str"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content: got .* of type list; expected a text"),
    ],
)  # fmt: skip
def test_messages_of_another_form_are_named(model, messages, why):
    with pytest.raises((TypeError, ValueError), match=why):
        Trace.from_messages(model, messages)


class TestFromMessages:
    @pytest.fixture
    def chat(self):
        words = tokenizer()
        words.chat_template = (
            "{% for m in messages %}{{ m.content }} . {% endfor %}{% if add_generation_prompt %}so {% endif %}"
        )
        return pcm.Model(tiny_llama(d_vocab=48), words, name="chat", prepend_bos=True)

    @pytest.mark.filterwarnings("ignore:.*unknown to the tokenizer")
    def test_the_prompt_is_the_template_and_the_reasoning_may_stand_apart(self, chat):
        messages = [
            {"role": "user", "content": "who is Fae"},
            {"role": "assistant", "content": "red", "reasoning_content": "Fae is small . Max is hot ."},
        ]
        trace = Trace.from_messages(chat, messages, answer="red", splitter="published")
        assert trace.text.startswith("who is Fae . so <think>")
        assert trace.n_sentences == 2

    def test_errors_name_messages(self, chat, model):
        with pytest.raises(ValueError, match="messages: the last one is of 'user'"):
            Trace.from_messages(chat, [{"role": "user", "content": "x"}])
        with pytest.raises(ValueError, match="no chat template"):
            Trace.from_messages(model, [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])


class TestFiles:
    def test_what_is_written_is_read_back(self, model, tmp_path):
        text = Trace.from_text(
            model, PROMPT.replace("?", "is"), CHAIN + "so cold", answer="cold", name="a", splitter="published"
        )
        tokens = random_trace(model)
        file = tmp_path / "traces.jsonl"
        file.write_text("\n".join(json.dumps(t.to_record()) for t in (text, tokens)) + "\n\n")
        again = Trace.from_jsonl(model, file)
        assert [t.name for t in again] == ["a", "random 0"]
        for before, after in zip((text, tokens), again):
            assert torch.equal(before.tokens, after.tokens) and before.answer == after.answer
            assert before.spans().tolist() == after.spans().tolist()

    @pytest.mark.parametrize("within", ["\u2028", "\x85"])
    def test_separators_that_json_allows_within_a_text_end_no_line(self, model, tmp_path, within):
        record = {"prompt": "Fae ", "completion": CHAIN, "splitter": "published", "name": f"a{within}b"}
        text = json.dumps(record, ensure_ascii=False)
        file = tmp_path / "traces.jsonl"
        file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")  # as Windows' editors save it
        assert [t.name for t in Trace.from_jsonl(model, file)] == [f"a{within}b"]

    def test_the_line_is_named(self, model, tmp_path):
        file = tmp_path / "traces.jsonl"
        good = json.dumps({"prompt": "Fae ", "completion": CHAIN, "splitter": "published"})
        of_a_number = json.dumps({"prompt": "Fae ", "completion": CHAIN, "answer": 42})
        for bad, why in [("{", "no JSON"), ("[1]", "expected an object"), ('{"prompt": "x"}', "completion: missing"),
                         ('{"tokens": [4, 5]}', "sentences: missing"), ("[" * 100_000, "no JSON"),
                         (of_a_number, "answer: got 42 of type int")]:  # fmt: skip
            file.write_text(f"{good}\n{bad}\n")
            with pytest.raises(ValueError, match=f"line 2: .*{why}"):
                Trace.from_jsonl(model, file)
        file.write_bytes(b'{"prompt": "\xff"}')
        with pytest.raises(ValueError, match="is not UTF-8 text"):
            Trace.from_jsonl(model, file)
        with pytest.raises(FileNotFoundError, match="path: there is no file"):
            Trace.from_jsonl(model, tmp_path / "no.jsonl")
        file.write_text("\n")
        with pytest.raises(ValueError, match="holds no trace"):
            Trace.from_jsonl(model, file)
        file.write_text(f"[\n{good}\n]")
        with pytest.raises(ValueError, match=r"line 1: .*\(a JSON array over many lines is none\)"):
            Trace.from_jsonl(model, file)


def test_another_cue():
    model = tiny()
    trace = random_trace(model)
    other = trace.with_cue(model, [5, 6, 7])
    assert other.cue.tolist() == [5, 6, 7] and torch.equal(other.answer_tokens, trace.answer_tokens)
    assert torch.equal(other.tokens[other.reasoning], trace.tokens[trace.reasoning]) and len(other) == len(trace) + 1
    assert len(trace.with_cue(model, []).cue) == 0
    with pytest.raises(ValueError, match="cue: token id 999"):
        trace.with_cue(model, [999])
    with pytest.raises(ValueError, match="cue: got a text"):
        trace.with_cue(model, "so")
    with pytest.raises(ValueError, match="has no answer"):
        random_trace(model, answer=False).with_cue(model, [5])


def test_from_tokens_checks_its_boundaries():
    model = tiny()
    ids = torch.arange(3, 23)
    made = Trace.from_tokens(model, ids, sentences=np.array([(2, 5), (5, 8)]))
    assert Trace.from_tokens(model, ids, sentences=made.spans()).spans().tolist() == [[2, 5], [5, 8]]
    first = r"sentences\[0\]: got"
    wrong = [([], "got none"), ([(0, 4)], first), ([(2, 5), (6, 8)], r"sentences\[1\]: begins at 6"), ([(2, 30)], first)]
    for sentences, why in wrong:
        with pytest.raises(ValueError, match=why):
            Trace.from_tokens(model, ids, sentences=sentences)
    with pytest.raises(ValueError, match=r"answer: got \(4, 6\)"):
        Trace.from_tokens(model, ids, sentences=[(2, 8)], answer=(4, 6))


class TestGenerate:
    def test_a_seed_makes_a_trace_and_the_users_random_numbers_stay(self, model):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        stop = lambda text: [text[i : i + 20] for i in range(0, len(text), 20)]  # noqa: E731
        a = Trace.generate(model, "Fae is", seed=3, max_new=30, splitter=stop, answer_tokens=2)
        assert torch.equal(torch.get_rng_state(), before)
        b = Trace.generate(model, "Fae is", seed=3, max_new=30, splitter=stop, answer_tokens=2)
        assert torch.equal(a.tokens, b.tokens) and a.answer is not None and a.seed == 3

    def test_nothing_is_written_after_the_stop(self, model):
        from pycotmech.traces.generating import _continued

        whole = _continued(model, "Fae is", 30, 3, {})
        stop = whole[len(whole) // 3 :][:4]
        begun = _continued(model, "Fae is", 30, 3, {}, stop)
        assert whole.startswith(begun) and stop in begun and len(begun) < len(whole)

    def test_arguments_are_checked(self, model):
        with pytest.raises(ValueError, match="temperature: got -1"):
            Trace.generate(model, "Fae", temperature=-1)
        with pytest.raises(ValueError, match="top_p: got 0"):
            Trace.generate(model, "Fae", top_p=0)

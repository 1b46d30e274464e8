"""Planted circuits as traces: each analysis finds the sentence and the head that were planted, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

import pycotmech as pcm
from tests.traces.planted import RECEIVER, WRITER, S, copies_from_the_chain, ignores_its_chain


@pytest.fixture(scope="module")
def chain():
    return copies_from_the_chain(6)


@pytest.fixture(scope="module")
def prompt():
    return ignores_its_chain(6)


@pytest.fixture(scope="module")
def used(chain):
    return pcm.traces.is_chain_used(chain.model, chain.traces, shuffles=2)


@pytest.fixture(scope="module")
def unused(prompt):
    return pcm.traces.is_chain_used(prompt.model, prompt.traces, shuffles=2)


def words(found) -> dict[str, str]:
    return {verdict.question: verdict.word for verdict in found.verdicts()}


class TestAModelThatCopiesFromSentenceK:
    def test_the_receiver_head_is_the_only_one_named(self, chain):
        found = pcm.traces.receiver_heads(chain.model, chain.traces, draws=100)
        assert found.top[0] == RECEIVER and found.named == [RECEIVER]
        for i, k in enumerate(chain.where):
            assert np.nanargmax(found.sentence_scores(i, heads=[RECEIVER])) == k

    def test_suppression_finds_the_sentence(self, chain):
        for trace, k in zip(chain.traces, chain.where):
            change = pcm.traces.suppress(chain.model, trace).data["answer_change"].values
            assert change.argmax() == k and change[k] > 3 and np.abs(np.delete(change, k)).max() < 0.1

    def test_the_answer_comes_with_the_sentence(self, chain):
        for trace, k in zip(chain.traces, chain.where):
            found = pcm.traces.early_answers(chain.model, trace)
            assert found.decided == k + 1
            assert found.values[: k + 1].max() < 0.1 and found.values[k + 1 :].min() > 0.9
            assert (found.decided_layer[k + 1 :] == WRITER[0]).all()

    def test_the_writer_carries_it(self, chain):
        for trace, k in zip(chain.traces[:2], chain.where):
            found = pcm.traces.head_influence(chain.model, trace, source=k)
            others = found.values.copy()
            others[WRITER] = 0
            assert found.values[WRITER] > 3 and np.abs(others).max() < 0.1
            elsewhere = pcm.traces.head_influence(chain.model, trace, source=(k + 1) % S)
            assert np.abs(elsewhere.values).max() < 0.1

    def test_the_writer_takes_it_from_the_sentence(self, chain):
        for trace, k in zip(chain.traces[:2], chain.where):
            found = pcm.traces.answer_paths(chain.model, trace)
            assert np.unravel_index(found.values.argmax(), found.values.shape) == WRITER
            assert str(found.sources.idxmax().values) == f"sentence {k}"

    def test_the_chain_is_used(self, used):
        assert words(used) == {
            "Does the answer depend on the chain?": "yes",
            "Does the order of its sentences matter?": "no",
            "Do single sentences carry it?": "yes",
            "Are there heads through which it reaches the answer?": "yes",
            "Is the answer decided before the reasoning, in most traces?": "no",
        }
        assert used.heads() == [WRITER]

    def test_the_table_names_the_sentence(self, used, chain):
        assert used.table()["sentence"].tolist() == chain.where
        assert used.table()["decided"].tolist() == [k + 1 for k in chain.where]
        early, late = min(chain.where), max(chain.where)
        np.testing.assert_allclose(used.decided_by(np.array([0, early / S, (late + 1) / S, 1])), [0, 0, 1, 1])


class TestAModelThatIgnoresItsChain:
    def test_nothing_is_named(self, prompt):
        found = pcm.traces.receiver_heads(prompt.model, prompt.traces, draws=100)
        assert WRITER not in found.named

    def test_no_sentence_matters(self, prompt):
        for trace in prompt.traces[:3]:
            assert np.abs(pcm.traces.suppress(prompt.model, trace).data["answer_change"].values).max() < 0.1

    def test_it_is_decided_before(self, prompt):
        for trace in prompt.traces[:3]:
            found = pcm.traces.early_answers(prompt.model, trace)
            assert found.decided == 0 and found.area_over_curve == 0

    def test_it_comes_from_the_prompt(self, prompt):
        found = pcm.traces.answer_paths(prompt.model, prompt.traces[0])
        assert str(found.sources.idxmax().values) == "prompt"
        carried = pcm.traces.head_influence(prompt.model, prompt.traces[0], source="prompt").values
        assert np.unravel_index(carried.argmax(), carried.shape) == WRITER

    def test_the_chain_is_not_used(self, unused):
        found = words(unused)
        assert found["Does the answer depend on the chain?"] == "no"
        assert found["Do single sentences carry it?"] != "yes"
        assert unused.decided_by(np.array([0.0])) == 1
        assert found["Is the answer decided before the reasoning, in most traces?"] in ("yes", "not decided")
        assert WRITER not in unused.heads()


def test_results_are_kept_drawn_and_told(used, tmp_path):
    used.save(tmp_path)
    again = pcm.traces.ChainUse.load(tmp_path)
    assert again.findings() == used.findings()
    again.plot(path=tmp_path / "c.png")

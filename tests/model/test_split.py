"""Models whose layers lie on several devices: rows go to the weights, no operation mixes devices, and the answers are those of
the model on one device, to the last bit."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.staircase import Staircase
from pycotmech.model import sizes
from tests.reference.pretended_devices import HOST, device, spread
from tests.reference.questions import CLEAN, CORRUPTED, QUESTIONS, answers
from tests.reference.small_families import CONFIGS, MHA, ONE_QUICK_TEST, small
from tests.reference.tiny import tiny_llama

ONE, TWO, THREE = (torch.device("cpu", i) for i in (1, 2, 3))
LLAMA = {
    "model.embed_tokens": ONE, "model.rotary_emb": ONE, "model.layers.0": ONE, "model.layers.1": TWO, "model.layers.2": THREE,
    "model.norm": THREE, "lm_head": THREE,
}  # fmt: skip


def by_layer(hf) -> dict[str, torch.device]:
    """Embedding and first layer on one device, the others and what comes after them on two more."""
    found = {}
    for name, module in hf.named_modules():
        if next(module.children(), None) is None:
            number = next((int(part) for part in name.split(".") if part.isdigit()), None)
            late = "norm" in name or "ln_f" in name or "lm_head" in name or "embed_out" in name
            found[name] = (ONE, TWO, THREE)[number] if number is not None else THREE if late else ONE
            if number is not None:
                found[".".join(name.split(".")[: name.split(".").index(str(number)) + 1])] = (ONE, TWO, THREE)[number]
    return found


@pytest.fixture(scope="module")
def llama():
    hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    return hf, pcm.Model(copy.deepcopy(hf))


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_answered_to_the_last_bit(llama, question):
    hf, whole = llama
    expected = answers(whole, question)
    with spread(copy.deepcopy(hf), LLAMA) as (devices, split):
        model = pcm.Model(split)
        found = answers(model, question)
        assert model.family.devices == (ONE, TWO, THREE) and devices.moves
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _cases():
    """Three questions of most families, and all of those of four that differ most; the rest is slow."""
    for family in (*CONFIGS, *MHA):
        for question in ("run", "z", "v", "residual", "written", "attribution"):
            quick = question in ("z", "residual", "attribution") or family in ("gemma2", "gpt2", "gpt_neox", "mixtral")
            quick = quick and family not in ONE_QUICK_TEST
            yield pytest.param(family, question, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("family", "question"), _cases())
def test_every_family(family, question):
    hf = small(family)
    whole = pcm.Model(copy.deepcopy(hf))
    try:
        expected = answers(whole, question)
    except NotImplementedError as refused:
        with spread(hf, by_layer(hf)), pytest.raises(NotImplementedError, match=re.escape(str(refused))):
            answers(pcm.Model(hf), question)
        return
    with spread(hf, by_layer(hf)):
        found = answers(pcm.Model(hf), question)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_rows_and_tables_move_once_for_each_device(llama, monkeypatch):
    """Whatever the number of blocks in which rows go through a layer."""
    hf, whole = llama
    counts, expected = [], pcm.patch_heads(whole, CLEAN, CORRUPTED).raw
    for size in (2048, 20):
        monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=size))
        with spread(copy.deepcopy(hf), LLAMA) as (devices, split):
            model = pcm.Model(split)
            plain, during = Staircase.run, []

            def counted(staircase, plain=plain, during=during, devices=devices):
                devices.moves.clear()
                out = plain(staircase)
                during.extend(devices.moves)
                return out

            monkeypatch.setattr(Staircase, "run", counted)
            np.testing.assert_allclose(pcm.patch_heads(model, CLEAN, CORRUPTED).raw, expected, rtol=1e-4, atol=1e-6)
            monkeypatch.setattr(Staircase, "run", plain)
            n = max(shape[0] for _, _, shape in during if shape[1:] == (48,))
            whole_rows = [(a, b) for a, b, shape in during if shape == (n, 48)]
            assert whole_rows == [(ONE, TWO), (TWO, THREE)]
        counts.append(len(during))
    assert counts[0] == counts[1]


def test_results_are_where_the_embedding_is(llama):
    hf, _ = llama
    with spread(copy.deepcopy(hf), LLAMA) as (_, split):
        acts = pcm.Model(split).run(torch.arange(9), capture=("z", "resid_post"))
        assert {device(x) for x in (acts.logits, *acts.values())} == {ONE}


def test_the_pretended_devices_behave_as_real_ones():
    with spread(torch.nn.Linear(3, 3), {}) as (devices, _):
        a, b = torch.ones(3, device=ONE), torch.ones(3, device=TWO)
        for wrong in (lambda: a + b, lambda: a + torch.ones(3), lambda: a.numpy(), lambda: torch.ones(3)[a.long()]):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert device(a + b.to(ONE)) == device(a + torch.tensor(1.0)) == device(a[torch.tensor([0])]) == ONE
        a[1:] = b[1:]
        assert device(a) == ONE and device(b.cpu()) == HOST and devices.moves == [(TWO, ONE, (3,))]


def test_a_layer_that_is_itself_split_is_refused(llama):
    hf, _ = llama
    refused = pytest.raises(NotImplementedError, match=r"layer 1 is itself split \(.*on cpu:2, .* on cpu:3\)")
    with spread(copy.deepcopy(hf), {**LLAMA, "model.layers.1.mlp": THREE}) as (_, split), refused:
        pcm.Model(split)


def test_weights_on_several_devices_that_nothing_moves_rows_between_are_refused():
    hf = tiny_llama()
    hf.model.layers[1].to("meta")
    with pytest.raises(ValueError, match="hf_model: has tensors on the meta device"):
        pcm.Model(hf)

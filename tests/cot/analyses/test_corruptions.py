"""E2: an inductive step broken in its premise, in its rule, or in its answer."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.task.corruptions import corrupted_prompt
from tests.reference.close import assert_allclose
from tests.reference.truth import kl, logits_of, patched_logits, z_of


@pytest.mark.parametrize("style", ["every", "paper"])
@pytest.mark.parametrize("number", [5, 9])
def test_only_the_named_part_is_replaced(model, style, number):
    examples = pcm.cot.make_examples(3, shots=1, style=style, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=2)
    for example in examples:
        step = example.steps[number]
        concept, entity = example.words["C1" if number == 5 else "C2"], example.words["E"]
        texts = {}
        for kind in ("premise", "rule"):
            ids = corrupted_prompt(example, step, kind, model.tokenizer)
            assert len(ids) == len(step.clean) and (ids[: len(examples.shared_ids)] == examples.shared_ids).all()
            before, after = (model.tokenizer.decode(t[len(examples.shared_ids) :]).split() for t in (step.clean, ids))
            texts[kind] = [(" ".join(before[max(0, i - 3) : i]), a, b) for i, (a, b) in enumerate(zip(before, after)) if a != b]
            assert len({b.strip(".,").rstrip("es").lower() for _, _, b in texts[kind]}) == 1  # one word for one word
            assert all(a.lower().startswith(concept[:4]) for _, a, _ in texts[kind])
        assert all(f"{entity} is" in front for front, *_ in texts["premise"]) and texts["premise"]
        assert not any(f"{entity} is" in front.split(".")[-1] for front, *_ in texts["rule"]) and len(texts["rule"]) == 2


def test_values_are_those_of_hooks(model, examples, every):
    found = pcm.cot.patch_steps(model, examples, right=every, corruption="rule")
    assert found.data["step"].values.tolist() == [5, 9] and found.about["source"] == "docs/protocol.md, E2"
    e, s = np.argwhere(found.data["kl_corrupted"].values > 0)[0]
    example = examples[int(e)]
    step = example.steps[(5, 9)[s]]
    corrupted = corrupted_prompt(example, step, "rule", model.tokenizer)
    last = logits_of(model.hf, corrupted, keep=1)[0]
    assert float(found.data["changed"][e, s]) == float(int(last.argmax()) != step.answer)
    clean_logits, z = logits_of(model.hf, step.clean, keep=1)[0], z_of(model.hf, step.clean)
    assert float(found.data["kl_corrupted"][e, s]) == pytest.approx(
        kl(clean_logits, logits_of(model.hf, corrupted, keep=1)[0]), rel=1e-4
    )
    for l, h in ((0, 7), (3, 5)):
        want = kl(clean_logits, patched_logits(model.hf, corrupted, z, l, h))
        assert float(found.data["kl"][e, s, l, h]) == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_score_weighs_kinds_by_their_divergence(model, examples, every):
    parts = [pcm.cot.patch_steps(model, examples, steps=[5], right=every, corruption=kind) for kind in ("answer", "rule")]
    score = pcm.cot.induction_score(parts)
    broken = [p.data["kl_corrupted"].values[..., None, None] for p in parts]
    want = sum(p.data["effect"].values * kl for p, kl in zip(parts, broken)) / sum(broken)
    assert_allclose(score.transpose("example", "step", "layer", "head").values, want)
    with pytest.raises(ValueError, match="different corruptions"):
        pcm.cot.induction_score([parts[0], parts[0]])


def test_examples_that_replace_one_word_are_refused(model, every, monkeypatch):
    """Broken from single replacements, a premise stays as it was or a rule is broken in the wrong place."""
    single = pcm.cot.make_examples(
        3, shots=1, style="paper", definition="paper", tokenizer=model.tokenizer, bos=model.prepend_bos, seed=2
    )
    asked = [
        lambda: pcm.cot.patch_steps(model, single, right=every, corruption="premise"),
        lambda: pcm.cot.patch_steps(model, single, right=every, corruption="rule"),
        lambda: pcm.cot.induction_heads(model, single, right=None),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(model, "run", lambda *a, **k: pytest.fail("something was run"))
        for call in asked:
            with pytest.raises(ValueError, match=r"examples: made with definition='paper'.*definition='exact'"):
                call()
    found = pcm.cot.patch_steps(model, single, steps=[5], right=every)  # the answer's own counterfactual needs no others
    assert found.data["kl_corrupted"].notnull().all()


def test_bad_input(model, examples, every):
    with pytest.raises(ValueError, match="corruption: got 'noise'"):
        pcm.cot.patch_steps(model, examples, right=every, corruption="noise")
    with pytest.raises(ValueError, match="breaks inductive steps, step 3 is of kind 'copying'"):
        pcm.cot.patch_steps(model, examples, steps=[3], right=every, corruption="premise")
    with pytest.raises(ValueError, match="corruption: 'rule' finds its words in the text"):
        pcm.cot.patch_steps(pcm.Model(model.hf), examples, right=every, corruption="rule")
    assert torch.equal(corrupted_prompt(examples[0], examples[0].steps[3], "answer", None), examples[0].steps[3].corrupted)

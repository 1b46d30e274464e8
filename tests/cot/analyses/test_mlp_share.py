"""E1: what restores a step is divided between attention and MLPs; against hooks, planted models and sums."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import mlp_share as module
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import Cost, workload
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference import planted
from tests.reference.close import assert_allclose


@pytest.fixture(scope="module")
def result(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.mlp_share(model, examples, steps=[1, 2, 5, 9], right=every)


def logits_by_hooks(model, step, parts):
    """The corrupted run whose outputs of attention or MLPs take their clean values at the last position."""
    kept, handles = {}, []
    layers = model.hf.model.layers
    modules = [(l, name, getattr(layer, name)) for l, layer in enumerate(layers) for name in ("self_attn", "mlp")]

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    for l, name, part in modules:
        handles.append(part.register_forward_hook(lambda m, a, out, k=(l, name): kept.update({k: first(out)[:, -1].clone()})))
    model.hf(step.clean[None])
    for handle in handles:
        handle.remove()
    clean = dict(kept)
    handles = []

    def frozen(k):
        """Clean if it is one of the parts, otherwise the corrupted run's own."""

        def hook(m, a, out):
            first(out)[:, -1] = clean[k] if k[1] in parts else own[k]
            return out

        return hook

    for l, name, part in modules:
        handles.append(part.register_forward_hook(lambda m, a, out, k=(l, name): kept.update({k: first(out)[:, -1].clone()})))
    model.hf(step.corrupted[None])
    for handle in handles:
        handle.remove()
    own = dict(kept)
    handles = [part.register_forward_hook(frozen((l, name))) for l, name, part in modules]
    try:
        return model.hf(step.corrupted[None]).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def test_restored_logits_are_those_of_hooked_forwards(model, examples, result):
    taken = {"none": (), "attention": ("self_attn",), "mlp": ("mlp",), "both": ("self_attn", "mlp")}
    for e, s in ((0, 5), (2, 1)):
        step = examples[e].steps[s]
        at = result.data.isel(example=e).sel(step=s)
        for name, parts in taken.items():
            logits = logits_by_hooks(model, step, parts)
            expected = float(logits[step.answer] - logits[step.wrong])
            assert float(at["logit_diff"].sel(taken=name)) == pytest.approx(expected, abs=1e-3)
    assert float(result.data["kl"].sel(taken="both").max()) < 1e-6  # together they are the clean run


def test_shares_add_up_and_are_what_the_definition_says(result):
    for metric in module.METRICS:
        found = result.shares(metric)
        assert_allclose(found["mean"].sum("part"), 1, rtol=1e-9, atol=1e-9)
    kl = result.data["kl"].sel(step=5)
    none, attention, mlp, both = (kl.sel(taken=t).mean("example") for t in module.TAKEN)
    expected = ((none - mlp) + (attention - both)) / 2 / (none - both)
    assert float(result.shares()["mean"].sel(step=5, part="mlp")) == pytest.approx(float(expected))


def test_planted_heads_restore_all_and_where_nothing_is_to_restore_there_is_no_share():
    made = planted.copying()
    heads = pcm.cot.mlp_share(made.model, planted.examples(made, 8))
    assert float(np.abs(heads.shares("logit_diff")["mean"].sel(part="mlp")).max()) < 0.02
    silent = planted.nothing(silent=True)
    none = pcm.cot.mlp_share(silent.model, planted.examples(silent, 4), right=torch.ones(4, 1, dtype=torch.bool))
    assert bool(none.shares()["mean"].isnull().all()) and none.findings() and len(none.table()) == 1


def test_result(result, tmp_path):
    keeps_its_ranges(result)
    assert len(result.table()) == 4 and "n = 3 examples" in result.findings()[0]
    assert list(result.table()["kind"]) == ["copying", "decision", "induction", "induction"]
    result.save(tmp_path)
    module.MlpShare.load(tmp_path).plot(path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_cost_is_what_was_predicted(model, examples, every, result):
    size = workload(choose(model, examples, steps=[1, 2, 5, 9], right=every))
    predicted = module.cost(model.cfg, size)
    assert result.about["cost"]["token_forwards"] == pytest.approx(predicted.token_forwards, rel=0.15)
    assert module.authors_cost(model.cfg, size) == Cost()  # left out

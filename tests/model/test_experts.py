"""Mixtures of experts on packed rows: each row is routed by itself, whatever products transformers computes experts with."""

import pytest
import torch

import pycotmech as pcm
from tests.reference.small_families import small

FAMILIES = ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")
ROWS = 37


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_routed_by_itself(family, implementation):
    hf = small(family)
    hf.set_experts_implementation(implementation)
    ours = pcm.Model(hf).family
    x = torch.randn(ROWS, ours.cfg.d_model, generator=torch.Generator().manual_seed(1))
    together = ours.mlp_out(0, x)
    alone = torch.cat([ours.mlp_out(0, row[None]) for row in x])
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    assert (ours.mlp_out(0, x[order]) - together[order]).abs().max() < 1e-5 * together.abs().max()
    hf.set_experts_implementation("eager")
    assert (ours.mlp_out(0, x) - together).abs().max() < 1e-5 * together.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_go_to_several_experts(family):
    """So that the test above has something to get wrong."""
    layer = small(family).model.layers[0]
    router = layer.mlp.router if family == "gpt_oss" else layer.mlp.gate
    x = torch.randn(ROWS, router.weight.shape[1], generator=torch.Generator().manual_seed(1))
    chosen = router(x)[2]
    assert len(chosen.sort(-1).values.unique(dim=0)) >= 3


def test_grouped_products_in_float64_are_refused():
    hf = small("gpt_oss").double()
    hf.set_experts_implementation("grouped_mm")
    with pytest.raises(ValueError, match=r"'grouped_mm', which takes no float64; call set_experts_implementation\('eager'\)"):
        pcm.Model(hf)


def test_a_model_loaded_in_float64_runs(tmp_path):
    small("mixtral").save_pretrained(tmp_path)
    model = pcm.Model.from_pretrained(tmp_path, dtype="float64")
    assert model.run(torch.arange(5)).logits.dtype == torch.float64

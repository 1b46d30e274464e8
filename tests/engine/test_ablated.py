"""Whole sets of heads out of the run, against one hooked float64 forward of Hugging Face for each prompt."""

import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.ablated import AblatedRuns
from pycotmech.engine.decode import Runs
from pycotmech.model.run import forward_packed
from tests.reference.close import assert_close
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, edited, logits_of

L, H, D, P, G = 3, 4, 16, 9, 7
LENGTHS = (14, 22, 10)


@pytest.fixture(scope="module", params=[4, 2], ids=["mha", "gqa"])
def case(request):
    hf = tiny_llama(n_layers=L, n_heads=H, n_key_value_heads=request.param, d_head=D, seed=3)
    generator = torch.Generator().manual_seed(5)
    prefix = torch.randint(61, (P,), generator=generator)
    prompts = [torch.cat((prefix, torch.randint(61, (n - P,), generator=generator))) for n in LENGTHS]
    shared_roles = torch.randint(G, (P,), generator=generator)
    roles = [torch.cat((shared_roles, torch.randint(G, (n - P,), generator=generator))) for n in LENGTHS]
    fill = 0.5 * torch.randn(L, G, H, D, generator=generator)
    reads = [[n - 1] if n < 12 else [n - 4, n - 1] for n in LENGTHS]
    return hf, double(hf), prompts, reads, roles, fill


def sets():
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(L, H, generator=generator) < 0.5
    one = torch.zeros(L, H, dtype=torch.bool)
    one[1, 2] = True
    last = torch.zeros(L, H, dtype=torch.bool)
    last[2] = True
    none, whole = torch.zeros(L, H, dtype=torch.bool), torch.ones(L, H, dtype=torch.bool)
    return {"none": none, "one": one, "some": some, "last layer": last, "all": whole}


def truth(hf64, prompts, reads, roles, fill, heads, first=0):
    """Logits [sum of reads, V]: each prompt on its own, whole, every chosen head replaced at every position from `first` on."""
    out = []
    for prompt, where, role in zip(prompts, reads, roles, strict=True):
        at = list(range(first, len(prompt)))
        edits = [("z", l, h, at, 0.0 if fill is None else fill[l, role[at], h].double()) for l, h in heads.nonzero().tolist()]
        with edited(hf64, edits):
            out.append(logits_of(hf64, prompt)[where])
    return torch.cat(out)


@pytest.mark.parametrize("name", list(sets()))
@pytest.mark.parametrize("kind", ["mean", "zero"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "suffix"])
def test_sets_are_those_of_hooked_forwards(case, name, kind, everywhere):
    hf, hf64, prompts, reads, roles, fill = case
    heads = sets()[name]
    fill = fill if kind == "mean" else None
    expected = truth(hf64, prompts, reads, roles, fill, heads, 0 if everywhere else P)
    arguments = dict(shared=P, fill=fill, roles=roles if kind == "mean" else None, everywhere=everywhere)
    wide = pcm.Model(hf64, check=False).family
    found = wide.logits(AblatedRuns(wide, prompts, reads, **arguments).final(heads))
    assert (found - expected).abs().max() < 1e-11
    family = pcm.Model(hf, check=False).family
    found = family.logits(AblatedRuns(family, prompts, reads, **arguments).final(heads))
    assert (found - expected).abs().max() < 2e-4 and expected.std() > 0.1


def test_groups_and_sharing_change_nothing(case):
    _, hf64, prompts, reads, roles, fill = case
    family, heads = pcm.Model(hf64, check=False).family, sets()["some"]
    together = AblatedRuns(family, prompts, reads, shared=P, fill=fill, roles=roles)
    apart = AblatedRuns(family, prompts, reads, shared=P, fill=fill, roles=roles, memory_gb=together.row_bytes * 14 / 2**30)
    unshared = AblatedRuns(family, prompts, reads, fill=fill, roles=roles)
    assert together.batches == [[0, 1, 2]] and apart.batches == [[0], [1, 2]]
    expected = unshared.final(heads)
    assert together.rows == P + sum(LENGTHS) - 3 * P and unshared.rows == sum(LENGTHS)
    for runs in (together, apart):
        assert (runs.final(heads) - expected).abs().max() < 1e-12
    again = together.final(heads)
    assert torch.equal(again, together.final(heads))  # nothing of one run remains for the next
    together.final(sets()["all"])
    assert torch.equal(again, together.final(heads))
    untouched = AblatedRuns(family, prompts, reads, shared=P, fill=fill, roles=roles).final(sets()["none"])
    for _ in range(2):  # the untouched prefix is kept, and no other in its place
        assert torch.equal(together.final(sets()["none"]), untouched)
        assert torch.equal(again, together.final(heads))


def test_without_attention_the_output_is_the_tokens_own(case):
    """All heads replaced: prompts that end in the same token with the same roles agree, whatever stands in front."""
    _, hf64, _, _, _, fill = case
    family = pcm.Model(hf64, check=False).family
    a, b = torch.arange(12), torch.cat((torch.arange(30, 41), torch.tensor([11])))
    roles = [torch.zeros(12, dtype=torch.long)] * 2
    for value in (fill, None):
        out = AblatedRuns(family, [a, b], [[11], [11]], fill=value, roles=roles).final(sets()["all"])
        assert (out[0] - out[1]).abs().max() < 1e-12
        out = AblatedRuns(family, [a, b], [[11], [11]], fill=value, roles=roles).final(sets()["some"])
        assert (out[0] - out[1]).abs().max() > 1e-2


def test_kept_z_is_what_went_on(case):
    hf64 = case[1]
    family = pcm.Model(hf64, check=False).family
    packed = forward_packed(family, [torch.arange(8)], sites=("z",), edit_z=lambda l, z, rows: z.mul_(l))
    assert float(packed.sites["z"][0].abs().max()) == 0 and float(packed.sites["z"][2].abs().max()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(prompts=[]), "prompts: got none"),
        (dict(prompts=[torch.arange(12), torch.arange(1, 13)]), r"prompts\[1\]: expected more than 4 tokens"),
        (dict(reads=[[5], []]), r"reads\[1\]: got \[\]; expected positions in 4\.\.11"),
        (dict(reads=[[3], [5]]), r"reads\[0\]: got \[3\]; expected positions in 4\.\.11"),
        (dict(fill=torch.zeros(L, 2, H)), r"fill: got shape \[3, 2, 4\]; expected \[3, roles, 4, 16\]"),
        (dict(roles=None), "roles: got None"),
        (dict(roles=[torch.zeros(12, dtype=torch.long), torch.full((12,), 9)]), r"roles\[1\]: expected 12 integers in 0\.\.1"),
        (
            dict(roles=[torch.zeros(12, dtype=torch.long), torch.ones(12, dtype=torch.long)]),
            r"roles\[1\]: the 4 shared positions have other roles",
        ),
    ],
)
def test_bad_input(case, change, words):
    family = pcm.Model(case[0], check=False).family
    arguments = dict(
        prompts=[torch.arange(12)] * 2,
        reads=[[5], [5]],
        fill=torch.zeros(L, 2, H, D),
        roles=[torch.zeros(12, dtype=torch.long)] * 2,
    )
    arguments |= change
    prompts, reads = arguments.pop("prompts"), arguments.pop("reads")
    with pytest.raises(ValueError, match=words):
        AblatedRuns(family, prompts, reads[: len(prompts)], shared=4, **arguments)


def test_final_refuses_what_is_no_mask(case):
    runs = AblatedRuns(pcm.Model(case[0], check=False).family, [torch.arange(5)], [[4]])
    with pytest.raises(ValueError, match=r"heads: got torch.int64 \[3, 4\]; expected a bool tensor \[3, 4\]"):
        runs.final(torch.zeros(L, H, dtype=torch.long))


def test_a_hook_that_would_be_ignored_is_refused_by_every_run():
    hf = tiny_llama(n_layers=L, n_heads=H, d_head=D)
    family = pcm.Model(hf).family
    runs = AblatedRuns(family, [torch.arange(5)], [[4]])
    handle = hf.model.layers[1].register_forward_hook(lambda module, args, out: out * 2)
    for call in (
        lambda: runs.final(sets()["one"]),
        lambda: forward_packed(family, [torch.arange(5)]),
        lambda: Runs(family, None, [L], 4),
    ):
        with pytest.raises(ValueError, match=r"model.layers.1 carries forward hooks, which would be ignored"):
            call()
    handle.remove()
    assert torch.isfinite(runs.final(sets()["one"])).all()


@torch.no_grad()
@pytest.mark.parametrize("upto", [1, 2])
def test_a_run_can_end_below_the_top(case, upto):
    hf, _, prompts, reads, roles, fill = case
    model = pcm.Model(hf, check=False)
    runs = AblatedRuns(model.family, prompts, reads, shared=P, fill=fill, roles=roles, upto=upto)
    whole = torch.zeros(L, H, dtype=torch.bool)
    expected = [model.run(p, capture=("resid_post",))["resid_post"][upto - 1][r] for p, r in zip(prompts, reads, strict=True)]
    assert_close(runs.final(whole), torch.cat(expected), atol=2e-5, rtol=1e-5)
    some = sets()["some"]
    above = some.clone()
    above[upto:] = True
    assert torch.equal(runs.final(some), runs.final(above))
    assert not torch.allclose(runs.final(some), runs.final(whole), atol=1e-3)
    packed = forward_packed(model.family, prompts, sites=("resid_post",), upto=upto)
    assert packed.sites["resid_post"].shape[0] == packed.k.shape[0] == upto
    with pytest.raises(ValueError, match="upto: got 0"):
        AblatedRuns(model.family, prompts, reads, shared=P, upto=0)


@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "suffix"])
@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_several_sets_together_are_each_by_itself(case, everywhere, kind):
    _, hf64, prompts, reads, roles, fill = case
    family, several = pcm.Model(hf64, check=False).family, torch.stack(list(sets().values()))
    arguments = dict(shared=P, everywhere=everywhere)
    arguments |= dict(fill=fill, roles=roles) if kind == "mean" else {}
    together = AblatedRuns(family, prompts, reads, **arguments)
    apart = AblatedRuns(family, prompts, reads, memory_gb=together.row_bytes * 20 / 2**30, **arguments)
    expected = torch.stack([together.final(heads) for heads in several])
    for runs in (together, apart):
        assert (runs.final_each(several) - expected).abs().max() < 1e-12
    assert (expected[0] - expected[1]).abs().max() > 1e-3

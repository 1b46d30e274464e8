"""Weights that are not plain numbers: adapters of PEFT, int8 of torchao, and modules that keep weights in a form of their own.

They are called and never read: every answer is that of hooked forwards of the Hugging Face model with the same modules.
"""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

import pycotmech as pcm
from tests.reference.questions import CLEAN, CORRUPTED, FIRST, T
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, edited_logits, hooked, logits_of, patched_logits, z_of

L, H, D = 3, 4, 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ANSWER = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)


class Int8(nn.Module):
    """As `bitsandbytes.nn.Linear8bitLt`: rows of integers and a scale for each; a module of a class of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("SCB", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.SCB.to(x.dtype), self.bias)


class Blocks(nn.Linear):
    """As layers that keep the blocks of a GGUF file and widen them in each call: a Linear by inheritance only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        blocks = linear.weight.detach().reshape(-1, 16)
        scale = blocks.abs().amax(1, keepdim=True) / 7
        self.weight = nn.Parameter(torch.cat(((blocks / scale).round().to(torch.int8).float(), scale), 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight[:, :-1] * self.weight[:, -1:]).view(self.out_features, self.in_features)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


def replaced(kind):
    def quantise(hf: nn.Module) -> nn.Module:
        for layer in hf.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, module in list(part.named_children()):
                    if name in PROJECTIONS:
                        setattr(part, name, kind(module))
        return hf

    return quantise


def lora(hf: nn.Module) -> nn.Module:
    config = peft.LoraConfig(r=4, target_modules=list(PROJECTIONS), init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return peft.get_peft_model(hf, config).eval()


def dora_of_some(hf: nn.Module) -> nn.Module:
    config = peft.LoraConfig(
        r=2, target_modules=["v_proj", "o_proj"], use_dora=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    return peft.get_peft_model(hf, config).eval()


def torchao_int8(hf: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(hf, Int8WeightOnlyConfig())  # the unembedding too
    return hf


KINDS = {"lora": lora, "dora": dora_of_some, "int8 modules": replaced(Int8), "gguf blocks": replaced(Blocks)}
# In an extra of its own, and not in `test`: transformers imports it wherever it is installed, in every process, and torchao
# 0.18 then writes warnings to standard error, which the tests of the shell compare.
if importlib.util.find_spec("torchao") is not None:
    KINDS["torchao int8"] = torchao_int8


@pytest.mark.skipif(
    "torchao int8" not in KINDS,
    reason="torchao is not installed, since every process would import it and warn: pip install -e '.[quantised]'",
)
def test_torchao_is_among_the_kinds():
    """So that a run without it says so."""


class Case:
    """A model whose weights are not plain, and the Hugging Face model with the same modules."""

    def __init__(self, kind: str) -> None:
        given = KINDS[kind](tiny_llama(n_layers=L, n_heads=H, n_key_value_heads=2))
        self.before = {name: p.detach().clone() for name, p in given.named_parameters() if type(p) is nn.Parameter}
        self.given, self.model = given, pcm.Model(given)
        self.hf = self.model.hf
        self.kind = kind

    def close(self, ours, truth, scale: float | None = None) -> None:
        ours, truth = np.asarray(ours, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        scale = np.abs(truth).max() if scale is None else scale
        assert np.abs(ours - truth).max() <= 2e-4 * max(scale, 0.05)


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    return Case(request.param)


def difference(logits: Tensor) -> float:
    return float(logits[7] - logits[11])


def test_the_modules_matter(case):
    plain = tiny_llama(n_layers=L, n_heads=H, n_key_value_heads=2)
    assert (logits_of(plain, CLEAN) - logits_of(case.hf, CLEAN)).abs().max() > 1e-3


def test_run(case):
    acts, truth = case.model.run(CLEAN, capture=("z", "q", "mlp_out", "resid_post")), activations(case.hf, CLEAN)
    for site in acts:
        case.close(acts[site], torch.stack([truth[site, l] for l in range(L)]))
    case.close(acts.logits, logits_of(case.hf, CLEAN))


def test_sweep_of_heads(case):
    found, source = pcm.patch_heads(case.model, CLEAN, CORRUPTED, **ANSWER), z_of(case.hf, CLEAN)
    truth = np.array([[difference(patched_logits(case.hf, CORRUPTED, source, l, h)) for h in range(H)] for l in range(L)])
    case.close(found.raw, truth, np.abs(truth - difference(logits_of(case.hf, CORRUPTED)[-1])).max())


@pytest.mark.parametrize("site", ["k", "v", "pattern"])
def test_other_sites(case, site):
    found, source = pcm.patch_heads(case.model, CLEAN, CORRUPTED, site=site, **ANSWER), activations(case.hf, CLEAN)
    for l in range(L):
        for h in range(found.raw.shape[1]):
            value = source[site, l][h] if site == "pattern" else source[site, l][:, h]
            case.close(found.raw[l, h], difference(edited_logits(case.hf, CORRUPTED, [(site, l, h, None, value)])), 1.0)


def test_residual(case):
    found = pcm.patch_residual(case.model, CLEAN, CORRUPTED, site="resid_mid", by_position=True, **ANSWER)
    source = activations(case.hf, CLEAN)
    for l in range(L):
        for p in (FIRST, FIRST + 2, T - 1):
            edit = ("resid_mid", l, None, [p], source["resid_mid", l][[p]])
            case.close(found.values[l, p], difference(edited_logits(case.hf, CORRUPTED, [edit])), 1.0)


def test_attention_summary(case):
    found, truth = (
        pcm.attention_summary(case.model, CLEAN, segments={"first": slice(0, 5), "rest": slice(5, T)}),
        activations(case.hf, CLEAN),
    )
    for l in range(L):
        pattern = truth["pattern", l]  # [H, T, T]
        case.close(found.received[l], pattern.sum(1))
        names = list(found.segment_names)
        case.close(found.mass[l][..., names.index("first")], pattern[..., :5].sum(-1))


def test_lens(case):
    found, truth = pcm.logit_lens(case.model, CLEAN, answer=[7, 11]), activations(case.hf, CLEAN)
    with torch.no_grad():
        said = [case.hf.lm_head(case.hf.model.norm(truth["resid_post", l]))[:, [7, 11]] for l in range(L)]
    case.close(found.logits, torch.stack(said, 1))


def test_attribution(case):
    """(source - base) . slope, the slope by hooks and autograd through the same modules."""
    found = pcm.attribute_heads(case.model, CLEAN, CORRUPTED, **ANSWER)
    source = z_of(case.hf, CLEAN)
    at: list[Tensor] = []

    def watch(_module, args):
        at.append(args[0])

    with (
        torch.enable_grad(),
        hooked(*[layer.self_attn.o_proj.register_forward_pre_hook(watch) for layer in case.hf.model.layers]),
    ):
        embeds = case.hf.model.embed_tokens(CORRUPTED[None]).detach().requires_grad_()
        logits = case.hf(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        slopes = torch.autograd.grad(logits[7] - logits[11], at)
    truth = [
        ((s - b.detach()[0].unflatten(-1, (H, D))) * g[0].unflatten(-1, (H, D))).sum((0, 2))
        for s, b, g in zip(source, at, slopes)
    ]
    case.close(found.raw_change, torch.stack(truth))


def test_what_heads_write(case):
    """Where projections are called, the parts of a row still add up to its logits."""
    found = pcm.head_logits(case.model, CLEAN, answer=7, wrong=11)
    assert np.abs(found.rounding).max() < 1e-3


def test_weights_stay_as_they_were(case):
    for name, p in case.given.named_parameters():
        if name in case.before:
            assert torch.equal(p, case.before[name]), name


def test_tied_weights_with_an_adapter_on_the_embedding_side():
    """An unembedding that shares the embedding's weight, and adapters elsewhere."""
    hf = tiny_llama(n_layers=2, tied=True)
    wrapped = lora(hf)
    model = pcm.Model(wrapped)
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
    assert torch.allclose(model.run(CLEAN).logits, wrapped(CLEAN[None]).logits[0].detach(), atol=2e-5)


def test_an_adapter_that_is_switched_off_is_off():
    hf = tiny_llama(n_layers=2)
    plain = pcm.Model(copy.deepcopy(hf)).run(CLEAN).logits
    wrapped = lora(hf)
    model = pcm.Model(wrapped)
    with wrapped.disable_adapter():
        assert torch.allclose(model.run(CLEAN).logits, plain, atol=2e-5)
    assert not torch.allclose(model.run(CLEAN).logits, plain, atol=1e-2)


def test_random_weights_in_place_of_quantised_ones_are_refused():
    from pycotmech.model.random_twin import random_twin

    with pytest.raises(NotImplementedError, match="its weights are quantised"):
        random_twin(pcm.Model(replaced(Int8)(tiny_llama())))

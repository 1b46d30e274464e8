"""The attention kernels with what each family asks of them: calls that a small model makes on the CPU, made again in Triton's
interpreter. A family whose layers ask what no other's do adds its calls by being in `small_families`."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pycotmech as pcm
from tests.kernels import cases
from tests.reference.small_families import FAMILIES, small

OPS = ("attn_extract", "attn_colsum", "attn_entries", "prefix_attn")
KNOWN: dict[str, set[tuple]] = {}
"""What has been compared, by op: families ask the same of most."""


class Calls(TorchDispatchMode):
    """Keeps one call of each op for each combination of what is asked: window, soft-cap, sinks, grouped heads."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace != "pycotmech" or name not in OPS:
            return func(*args, **(kwargs or {}))
        given = tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in args)
        out = func(*args, **(kwargs or {}))
        asked = asked_of(func, args)
        if not kwargs and asked not in KNOWN.setdefault(name, set()):
            self.kept[name, *asked] = (given, out)
        return out


def asked_of(func, args) -> tuple:
    named = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False))
    heads, keys = (named[name].shape[1] for name in ("q", "k_own" if "k_own" in named else "k"))
    sinks = named.get("sinks") is not None
    return bool(named.get("window")), bool(named.get("softcap")), sinks, heads > keys, len(args)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "windowed"])
def test_what_a_family_asks(family, run_once):
    model, clean = pcm.Model(small(family), check=False), torch.arange(3, 23)
    corrupted = clean.clone()
    corrupted[13] += 1
    with Calls() as calls:
        pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False)
        pcm.attention_summary(model, clean, segments={"a": slice(2, 9)})
        pcm.head_scores(model, clean)
    for (name, *asked), (args, expected) in calls.kept.items():
        found = run_once(name, *args)
        for got, want in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
            if want.is_floating_point():
                cases.close(f"{name} of {family}, {asked}", got, want.double(), 1e-5)
            else:
                assert torch.equal(got, want), f"{name} of {family}, {asked}"
        KNOWN[name].add(tuple(asked))
    rules = [model.family.attention(l) for l in range(model.cfg.n_layers)]
    for rule in rules:  # each layer's rule has gone through the kernel of runs and sweeps
        asked = (bool(rule.window), bool(rule.softcap), rule.sinks is not None)
        assert any(known[:3] == asked for known in KNOWN["prefix_attn"])

"""A hook on any module of any family: what it does is honoured, or the model is refused. It is never ignored."""

import pytest
import torch
from torch import Tensor

import pycotmech as pcm
from tests.reference.small_families import FAMILIES, small
from tests.reference.truth import logits_of

TOKENS = torch.arange(20) * 7 % 61
QUICK = ("gpt2", "gpt_neox", "phi3")  # with modules that do nothing outside of training


def changed(value):
    """Floating-point tensors of a module's inputs or outputs, changed."""
    if isinstance(value, Tensor):
        return value * 1.25 + 0.05 if value.is_floating_point() else value
    return tuple(map(changed, value)) if isinstance(value, tuple) else value


def modules_of(hf) -> list[str]:
    """Those around the layers, and all of the second layer."""
    named = [name for name, _ in hf.named_modules()]
    layer = next(name for name in named if name.rpartition(".")[2] == "1" and name.rpartition(".")[0].endswith(("layers", "h")))
    stack = layer.rpartition(".")[0]
    return [n for n in named if not n.startswith(f"{stack}.") or n == layer or n.startswith(f"{layer}.")]


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES if f != "windowed"]
)
def test_a_hook_is_honoured_or_refused(family, kind):
    hf = small(family)
    model = pcm.Model(hf)
    honoured = refused = 0
    plain = logits_of(hf, TOKENS)[-1]
    for name in modules_of(hf):
        module = hf.get_submodule(name)
        if kind == "input":
            hook = module.register_forward_pre_hook(lambda module, inputs: changed(inputs))
        else:
            hook = module.register_forward_hook(lambda module, inputs, output: changed(output))
        try:
            ours = model.run(TOKENS, positions=-1).logits[0]
        except (ValueError, NotImplementedError) as error:
            refused += 1
            assert "hooks" in str(error), name
        else:
            theirs = logits_of(hf, TOKENS)[-1]
            assert (ours - theirs).abs().max() <= 2e-4 * theirs.abs().max(), f"the hook on {name or 'the model'} was ignored"
            honoured += bool((theirs - plain).abs().max() > 1e-3)
        finally:
            hook.remove()
    assert honoured >= 5 and refused >= 3

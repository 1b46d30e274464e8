"""A model of the same shape whose layers hold random weights: what its architecture and its embedding give alone."""

from __future__ import annotations

import torch
from torch import nn

from pycotmech.model.model import Model
from pycotmech.model.placement import is_placed
from pycotmech.model.twin import twin_of


@torch.no_grad()
def random_twin(model: Model, *, seed: int = 0) -> Model:
    """Returns a model with the same embedding, unembedding, norms and biases and random matrices in all layers.

    Each matrix is drawn from a normal distribution with the standard deviation of the model's own, on the model's device.
    `model` stays as it is, and shares what is not drawn.
    Raises NotImplementedError for quantised weights, and for a model that accelerate has placed on devices or on disk.

    Cost: the memory of the layers once more, and one pass over them.
    """
    if model.family.is_quantised():
        raise NotImplementedError("model: its weights are quantised, and random ones cannot be drawn in their place")
    if is_placed(model.hf):
        raise NotImplementedError(
            "model: it was placed by device_map, and random weights are drawn for a model in one place only"
        )
    hf = model.hf
    kept = {id(module) for module in (hf.get_input_embeddings(), hf.get_output_embeddings())}
    names = [name for name, module in hf.named_modules() if id(module) not in kept and _matrices(module)]
    twin = twin_of(hf, ["", *names])
    generator = torch.Generator(model.device).manual_seed(seed)
    for name in names:
        module = twin.get_submodule(name)
        for key, weight in _matrices(module):
            drawn = torch.randn(weight.shape, generator=generator, device=weight.device) * weight.float().std()
            setattr(module, key, nn.Parameter(drawn.to(weight.dtype), requires_grad=False))
    name = f"{model.name}, random weights"
    return Model(twin, model.tokenizer, name=name, prepend_bos=model.prepend_bos, notes=model.notes, check=False)


def _matrices(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The module's own parameters of two or more axes."""
    return [(key, p) for key, p in module.named_parameters(recurse=False) if p.dim() > 1]

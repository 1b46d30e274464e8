"""A model whose layers are on several devices, or whose weights are kept in the CPU's memory or on disk (accelerate's
`device_map`): the stages of its family, with rows moved to the layer's device and results moved back.

Rows move and weights stay. What takes many rows up through the layers puts them on the layer's device first (`device_of`), so
that they move once per layer; everything else gets its results where its rows came from. Weights that are kept elsewhere are
loaded once for each pass of rows through a layer, and held until another layer is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pycotmech.model import placement
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import Family


class PlacedFamily(Family):
    """The stages of the family that comes after it in the order of bases, on the devices on which the layers run."""

    _layer_devices: Sequence[torch.device] = ()
    _after: Sequence[torch.device] = ()
    """Of the last norm and of the unembedding."""

    def __init__(self, hf: Any) -> None:
        super().__init__(hf)  # type: ignore[call-arg]  # a family's own constructor takes the model alone
        self.few_launches = False  # weights may have to be loaded, one by one
        layers = [self.hf.get_submodule(name.rpartition(".")[0]) for name, _ in map(self.sublayers, range(self.cfg.n_layers))]
        self._layer_devices = [_only_device(l, layer) for l, layer in enumerate(layers)]
        norm = self.hf.get_submodule(self.tap("final", self.cfg.n_layers - 1)[0])
        self._after = self._norm_device, self._top_device = placement.device_of(norm), placement.device_of(self._unembedding())
        self.offloaded = any(map(placement.is_offloaded, self.hf.modules()))

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        for name, module in self._never_called():
            if placement.loads_its_parts(module):
                raise NotImplementedError(
                    f"model: {name} loads the weights of all its parts when it is called as a whole (accelerate's "
                    "preload_module_classes), and layers are computed stage by stage; dispatch the model without that"
                )

    def device_of(self, l: int) -> torch.device:
        return self._layer_devices[l]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return tuple(dict.fromkeys((self.device, *self._layer_devices, *self._after)))

    def _at(self, l: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors on the device of layer l, whose weights are the ones that are held from now on."""
        placement.turn_to((id(self), l) if self.offloaded else None)
        return tuple(t.to(self._layer_devices[l]) for t in tensors)

    # ---- before the layers -------------------------------------------------------------------------------------------

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return super().embed(tokens.to(self.device), positions.to(self.device)).to(tokens.device)  # type: ignore[safe-super]

    def rotary(self, positions: Tensor) -> Tensor:
        return super().rotary(positions).to(positions.device)  # type: ignore[safe-super]

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        device = (*queries, *keys)[0].device
        rows = rows.to(device) if isinstance(rows, Tensor) else rows
        super().rotate(l, angles.to(device), rows, *queries, keys=keys)

    # ---- layers ------------------------------------------------------------------------------------------------------

    def attention(self, l: int) -> LayerAttention:
        self._at(l)  # its sinks are a weight
        return super().attention(l)  # type: ignore[safe-super]

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(l, *self._at(l, x))  # type: ignore[safe-super]
        return q.to(x.device), k.to(x.device), v.to(x.device)

    def qkv_after(self, l: int, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x += added.to(x.device)
        return self.qkv(l, x)

    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        return super().mlp_out(l, *self._at(l, x)).to(x.device)  # type: ignore[safe-super]

    def mlp_after(self, l: int, x: Tensor, added: Tensor) -> Tensor:
        x += added.to(x.device)
        return self.mlp_out(l, x)

    def attn_out(self, l: int, z: Tensor) -> Tensor:
        return super().attn_out(l, *self._at(l, z)).to(z.device)

    def head_out(self, l: int, z: Tensor) -> Tensor:
        return super().head_out(l, *self._at(l, z)).to(z.device)

    def attn_bias(self, l: int, z: Tensor) -> Tensor:
        return super().attn_bias(l, *self._at(l, z)).to(z.device)

    def added_scale(self, l: int, z: Tensor) -> Tensor | None:
        scale = super().added_scale(l, *self._at(l, z))
        return None if scale is None else scale.to(z.device)

    def head_change(self, l: int, h: int, z: Tensor, values: Tensor) -> Tensor:
        return super().head_change(l, h, *self._at(l, z, values)).to(z.device)

    def output_matrix(self, l: int) -> Tensor:
        self._at(l)
        return super().output_matrix(l).to(self.device)

    def join(self, l: int, x_mid: Tensor, z: Tensor, dz: Tensor, heads: Tensor, index: Tensor | None = None) -> Tensor:
        on_layer = self._at(l, x_mid, z, dz, heads)
        index = None if index is None else index.to(self._layer_devices[l])
        return super().join(l, on_layer[0], on_layer[1], on_layer[2], on_layer[3], index).to(x_mid.device)

    # ---- after the layers --------------------------------------------------------------------------------------------

    def final_norm(self, x: Tensor) -> Tensor:
        placement.turn_to(None)
        return super().final_norm(x.to(self._norm_device)).to(x.device)  # type: ignore[safe-super]

    def final_gain(self) -> Tensor:
        return super().final_gain().to(self.device)  # type: ignore[safe-super]

    def final_bias(self) -> Tensor | None:
        bias = super().final_bias()
        return None if bias is None else bias.to(self.device)

    def unembed(self, n: Tensor, token_ids: Tensor | None = None) -> Tensor:
        token_ids = None if token_ids is None else token_ids.to(self._top_device)
        placement.turn_to(None)
        return super().unembed(n.to(self._top_device), token_ids).to(n.device)

    def unembedding_rows(self, token_ids: Any) -> Tensor:
        token_ids = token_ids.to(self._top_device) if isinstance(token_ids, Tensor) else token_ids
        return super().unembedding_rows(token_ids).to(self.device)

    def unembedding_mean(self) -> Tensor:
        return super().unembedding_mean().to(self.device)

    def unembedding_bias(self) -> Tensor | None:
        bias = super().unembedding_bias()
        return None if bias is None else bias.to(self.device)


@functools.cache
def placed(family: type[Family]) -> type[Family]:
    """The family's adapter for models that accelerate has placed on devices."""
    return type(family.__name__, (PlacedFamily, family), {"__doc__": family.__doc__})


def _only_device(l: int, layer: nn.Module) -> torch.device:
    """Where all parts of a layer run. Raises NotImplementedError if they run on several devices."""
    parts = {
        placement.device_of(part): name
        for name, part in layer.named_modules()
        if any(True for _ in placement.own_tensors(part))
    }
    if len(parts) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in parts.items())
        raise NotImplementedError(
            f"model: layer {l} is itself split ({where}); expected a device_map that keeps layers whole (accelerate's "
            "no_split_module_classes)"
        )
    return next(iter(parts))

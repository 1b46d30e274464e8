"""What Phi-3 and GLM-4 share: one projection of the MLP to gate and up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.families.one_module import is_exactly, linear


class FusedGateUp(LlamaFamily):
    """A Llama whose MLP has `gate_up_proj`, `activation_fn` and `down_proj`."""

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        apart = ("mlp.act_fn", "mlp.gate_proj", "mlp.up_proj")
        parts = {name: kinds for name, kinds in super()._parts().items() if name not in apart}
        return {**parts, "mlp.activation_fn": self.activation_types, "mlp.gate_up_proj": (nn.Linear,)}

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        mlp = self.layers[l].mlp
        if not is_exactly(mlp, *self.mlp_types) or not is_exactly(mlp.activation_fn, *self.activation_types):
            return mlp(n[None])[0]
        parts = []
        for rows in n.split(self.mlp_rows):
            gate, up = linear(mlp.gate_up_proj, rows).chunk(2, -1)  # [rows, d_mlp] each
            parts.append(linear(mlp.down_proj, self._gated(gate.contiguous(), up.contiguous())))
        return torch.cat(parts)

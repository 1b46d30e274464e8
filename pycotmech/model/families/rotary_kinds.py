"""What Gemma 3 and OLMo 3 share: a rotary embedding for each kind of layer, those with a window and those without."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.model.families.llama import LlamaFamily


class RotaryByKind(LlamaFamily):
    """A Llama whose configuration gives `layer_types`, with rotary parameters for each of them."""

    def _kinds(self) -> list[str]:
        return sorted(set(self.hf.config.layer_types))

    def rotary(self, positions: Tensor) -> Tensor:
        like = torch.empty(0, dtype=self.resid_dtype, device=self.device)
        return torch.stack([torch.cat(self.base.rotary_emb(like, positions[None], kind)) for kind in self._kinds()])

    def _rotary_kind(self, l: int) -> int:
        return self._kinds().index(self.hf.config.layer_types[l])

    def _rotary_scales(self) -> list[float]:
        return [float(getattr(self.base.rotary_emb, f"{kind}_attention_scaling")) for kind in self._kinds()]

    def _wide_rotary(self, l: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.rotary_emb(x, positions, self.hf.config.layer_types[l])

"""Phi-3: Llama with one projection to queries, keys and values and one to gate and up, a part of each head without rotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn
from transformers.models.phi3 import modeling_phi3

from pycotmech.model.families.gate_up import FusedGateUp
from pycotmech.model.families.one_module import linear


class Phi3Family(FusedGateUp):
    """`Family` of Phi3ForCausalLM."""

    model_types = ("phi3",)
    reads = FusedGateUp.reads | {"partial_rotary_factor", "sliding_window"}

    norm_types = (modeling_phi3.Phi3RMSNorm,)
    mlp_types = (modeling_phi3.Phi3MLP,)
    rotary_types = (modeling_phi3.Phi3RotaryEmbedding,)

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        apart = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        parts = {name: kinds for name, kinds in super()._parts().items() if name not in apart}
        return {**parts, "self_attn.qkv_proj": (nn.Linear,)}

    def _never_called(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super()._never_called()
        for l, layer in enumerate(self.hf.model.layers):
            for name in ("resid_attn_dropout", "resid_mlp_dropout"):
                yield f"model.layers.{l}.{name}", layer.get_submodule(name)

    def window(self, l: int) -> int:
        return self.hf.config.sliding_window or 0

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        return (f"model.layers.{l}.self_attn.qkv_proj", "output") if site in ("q", "k", "v") else super().tap(site, l)

    def tapped(self, site: str, x: Tensor) -> Tensor:
        heads = super().tapped(site, x)  # [B, T, H + 2 Hkv, D]
        return self._split(heads)["qkv".index(site)] if site in ("q", "k", "v") else heads

    def _split(self, heads: Tensor) -> tuple[Tensor, ...]:
        """[..., H + 2 Hkv, D] of the joint projection -> q, k, v [..., heads, D]."""
        return heads.split((self.cfg.n_heads, self.cfg.n_key_value_heads, self.cfg.n_key_value_heads), -2)

    def _projections(self, l: int, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = linear(self.layers[l].self_attn.qkv_proj, n)
        q, k, v = self._split(joint.view(len(n), -1, self.cfg.d_head))
        return q.contiguous(), k.contiguous(), v.contiguous()

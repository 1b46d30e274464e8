"""What GPT-2, GPT-NeoX and Phi share: LayerNorm with a bias, an MLP without a gate."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from pycotmech.model.config import ModelConfig
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.base import Family
from pycotmech.model.families.one_module import is_exactly, linear
from pycotmech.model.placement import device_of, weight_of

_GELU: dict[type[nn.Module], Literal["tanh", "none"]] = {NewGELUActivation: "tanh", GELUTanh: "tanh", GELUActivation: "none"}
"""Activations of transformers that PyTorch computes in one pass. Others are called as they are."""


class LayerNormFamily(Family):
    """A model whose layers are a LayerNorm and attention, a LayerNorm and an MLP of two projections.

    A subclass names the parts.
    """

    centred = True

    trunk: ClassVar[str]
    """Name of the model without its unembedding; of what is in it, `embedding`, `stack` (the layers) and `last_norm`."""
    embedding: ClassVar[str]
    stack: ClassVar[str]
    last_norm: ClassVar[str]
    attention_name: ClassVar[str]
    """Name of attention in a layer; below, names in a layer too: the norms, projections, and modules that do nothing here."""
    norms: ClassVar[tuple[str, str]]
    inputs: ClassVar[tuple[str, ...]]
    """Of the projections to queries, keys and values: one for all, or three."""
    output: ClassVar[str]
    mlp_parts: ClassVar[tuple[str, str]]
    activation: ClassVar[str] = "mlp.act"
    dropouts: ClassVar[tuple[str, ...]]
    embedding_dropout: ClassVar[str]
    """Name in the trunk of what does nothing to the embedding here."""
    projection_type: ClassVar[type[nn.Linear] | type[Conv1D]]
    classes: ClassVar[dict[str, type[nn.Module]]]
    """Name in a layer -> the class of a module of several parts."""

    def __init__(self, hf: Any) -> None:
        config = hf.config
        self.base = hf.get_submodule(self.trunk)
        self.layers = list(self.base.get_submodule(self.stack))
        embedding = self.base.get_submodule(self.embedding)
        n_heads, d_model = config.num_attention_heads, config.hidden_size
        cfg = ModelConfig(
            n_layers=self._n_layers(hf),
            n_heads=n_heads,
            n_key_value_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            d_model=d_model,
            d_head=d_model // n_heads,
            d_mlp=self._d_mlp(config),
            d_vocab=config.vocab_size,
            n_ctx=config.max_position_embeddings,
            family=config.model_type,
            dtype=embedding.weight.dtype,
            n_mlp_matrices=2,
            parallel=self._is_parallel(config),
        )
        super().__init__(hf, cfg, device_of(embedding))

    @abstractmethod
    def _d_mlp(self, config: Any) -> int:
        """Width of the MLP's hidden layer."""

    def _is_parallel(self, config: Any) -> bool:
        return False

    def part(self, l: int, name: str) -> Any:
        """A module of a layer by its name there."""
        return self.layers[l].get_submodule(name)

    # ---- what would be computed wrongly is refused -----------------------------------------------------------------

    def is_plain(self) -> bool:
        kinds = self._parts()
        around = is_exactly(self.base.get_submodule(self.embedding), nn.Embedding)
        return around and all(is_exactly(self.part(l, m), kind) for l in range(len(self.layers)) for m, kind in kinds.items())

    def _parts(self) -> dict[str, type[nn.Module]]:
        """Name in a layer -> the class of every module that takes part."""
        projections = dict.fromkeys((*self.inputs, self.output, *self.mlp_parts), self.projection_type)
        return {**dict.fromkeys(self.norms, nn.LayerNorm), **projections, **self.classes}

    def constants(self) -> tuple[float, ...]:
        scales = [self.attention(l).scale for l in range(self.cfg.n_layers)]
        return (*scales, *(self.part(l, name).eps for l in range(self.cfg.n_layers) for name in self.norms))

    def _never_called(self) -> Iterator[tuple[str, nn.Module]]:
        yield "the model itself", self.hf
        yield self.trunk, self.hf.get_submodule(self.trunk)
        around = f"{self.trunk}.{self.embedding_dropout}"
        yield around, self.hf.get_submodule(around)
        for l, layer in enumerate(self.hf.get_submodule(f"{self.trunk}.{self.stack}").children()):
            name = f"{self.trunk}.{self.stack}.{l}"
            yield name, layer
            for part in (self.attention_name, *self.dropouts):
                yield f"{name}.{part}", layer.get_submodule(part)

    def _n_layers(self, hf: Any) -> int:
        return min(len(hf.get_submodule(f"{self.trunk}.{self.stack}")), hf.config.num_hidden_layers)

    # ---- the model's own modules, for hooks --------------------------------------------------------------------------

    def sublayers(self, l: int) -> tuple[str, str]:
        layer = f"{self.trunk}.{self.stack}.{l}"
        return f"{layer}.{self.attention_name}", f"{layer}.mlp"

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        if site == "final":
            return f"{self.trunk}.{self.last_norm}", "input"
        return f"{self.trunk}.{self.stack}.{l}.{self.output}", "input"

    @torch.no_grad()
    def widened(self, tokens: Tensor) -> dict[str, Tensor]:
        T, out = len(tokens), {}
        positions = torch.arange(T, device=self.device)
        x = self.embed(tokens.to(self.device), positions)[None].float()  # [1, T, d]
        for l, layer in enumerate(self.layers):
            mask = torch.zeros(T, T, device=self.device).masked_fill(~self.attention(l).visible(positions, T), -torch.inf)
            wide = copy.deepcopy(layer).float()
            attention_module = wide.get_submodule(self.attention_name)
            attention_module.config._attn_implementation = "eager"  # the copy's; takes the additive mask
            read = wide.get_submodule(self.norms[0])(x)
            attention = attention_module(read, attention_mask=mask[None, None], **self._wide_rotary(x, positions))[0]
            mlp = wide.mlp(wide.get_submodule(self.norms[1])(x if self.cfg.parallel else x + attention))
            x = x + attention + mlp
            out |= zip(self.sublayers(l), (attention[0].cpu(), mlp[0].cpu()), strict=True)
        return {**out, "logits": self._widened_logits(self.base.get_submodule(self.last_norm), x)}

    def _wide_rotary(self, x: Tensor, positions: Tensor) -> dict[str, Any]:
        """What the Hugging Face attention is given besides its input and mask."""
        return {}

    # ---- the stages of a forward pass, on rows -----------------------------------------------------------------------

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.base.get_submodule(self.embedding)(tokens).to(self.resid_dtype)

    def attention(self, l: int) -> LayerAttention:
        return LayerAttention(self.part(l, self.attention_name).scaling)

    def _output_projection(self, l: int) -> nn.Linear | Conv1D:
        return self.part(l, self.output)

    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        mlp, n = self.part(l, "mlp"), self._norm(self.part(l, self.norms[1]), x)
        if not is_exactly(mlp, self.classes["mlp"]):
            return mlp(n[None])[0]
        widen, narrow = (self.part(l, name) for name in self.mlp_parts)
        hidden, activation = linear(widen, n), self.part(l, self.activation)
        kind = _GELU.get(type(activation)) if is_exactly(activation, *_GELU) else None
        return linear(narrow, activation(hidden) if kind is None else F.gelu(hidden, approximate=kind))

    def final_norm(self, x: Tensor) -> Tensor:
        norm = self.base.get_submodule(self.last_norm)
        return self._normed(norm, x) if self.plain_unembedding() and is_exactly(norm, nn.LayerNorm) else self._norm(norm, x)

    def final_factor(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.var(-1, keepdim=True, correction=0) + self.base.get_submodule(self.last_norm).eps)

    def final_gain(self) -> Tensor:
        return weight_of(self.base.get_submodule(self.last_norm)).detach().to(self.resid_dtype)

    def final_bias(self) -> Tensor:
        return weight_of(self.base.get_submodule(self.last_norm), "bias").detach().to(self.resid_dtype)

    def _unembedding(self) -> nn.Linear:
        return self.hf.lm_head

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        """LayerNorm of rows [R, d], rounded once to the model's dtype."""
        if is_exactly(module, nn.LayerNorm):
            return self._normed(module, x).to(self.dtype)
        return module(x.to(self.dtype)[None])[0]

    def _normed(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        weight, bias = (weight_of(norm, name).to(self.resid_dtype) for name in ("weight", "bias"))
        return F.layer_norm(x.to(self.resid_dtype), norm.normalized_shape, weight, bias, norm.eps)


class JointLayerNorm(LayerNormFamily):
    """One with one projection to queries, keys and values: the sites q, k and v are parts of its output."""

    @abstractmethod
    def _split(self, joint: Tensor) -> tuple[Tensor, ...]:
        """The joint projection's output [R, 3 * H * D] -> q, k, v [R, H, D]."""

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._split(linear(self.part(l, self.inputs[0]), self._norm(self.part(l, self.norms[0]), x)))
        return q.contiguous(), k.contiguous(), v.contiguous()

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        name = f"{self.trunk}.{self.stack}.{l}.{self.inputs[0]}"
        return (name, "output") if site in ("q", "k", "v") else super().tap(site, l)

    def tapped(self, site: str, x: Tensor) -> Tensor:
        if site not in ("q", "k", "v"):
            return super().tapped(site, x)
        return self._split(x.flatten(0, 1).contiguous())["qkv".index(site)].unflatten(0, x.shape[:2])


class RotatedLayerNorm(LayerNormFamily):
    """One with a rotary embedding, of all of each head or a part."""

    rotary_type: ClassVar[type[Any]]

    def is_plain(self) -> bool:
        return super().is_plain() and is_exactly(self.base.rotary_emb, self.rotary_type)

    def constants(self) -> tuple[float, ...]:
        return (*super().constants(), float(self.base.rotary_emb.attention_scaling))

    def rotary(self, positions: Tensor) -> Tensor:
        like = torch.empty(0, dtype=self.resid_dtype, device=self.device)
        return torch.cat(self.base.rotary_emb(like, positions[None]))[None]  # [1, 2, R, rotated part of D]

    def _wide_rotary(self, x: Tensor, positions: Tensor) -> dict[str, Any]:
        return {"position_embeddings": self.base.rotary_emb(x, positions[None])}

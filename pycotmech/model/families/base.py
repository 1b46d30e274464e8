"""What a model family is to the rest of the library: sizes, names of parts, and one layer's arithmetic stage by stage.

The engine never runs a Hugging Face block as a whole: it needs the stages apart, on rows of many sequences and variants at
once. The adapter owns the arithmetic of a stage and nothing else. It uses the model's own modules and weights, never a copy:
a module that is exactly the library's own (no hooks, no replaced forward) is computed by a fused op from its weights; any
other (an adapter, a quantised projection, a hooked module) is called as it is. Modules that are never called as a whole,
such as the decoder layer, must carry no hooks: `refuse_unsupported` says which one does.

The residual stream is kept in float32 (float64 for a float64 model); matrix products get inputs in the model's dtype.

Letters: R packed rows, T positions, H query heads, Hkv key-value heads, D head size, d width of the residual stream, V tokens
of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pycotmech import ops
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.chance import refuse_chance
from pycotmech.model.families.launches import side_by_side
from pycotmech.model.families.one_module import attached, is_exactly, linear, product
from pycotmech.model.families.readout import Readout
from pycotmech.model.families.refused import has_longrope, short_rope_length
from pycotmech.model.placement import device_of, weight_of
from pycotmech.model.precision import refuse_rounded_products
from pycotmech.model.sizes import Sizes, for_device, keep_freed_memory


class Family(Readout):
    """A model of one family, stage by stage.

    A subclass says what its family calls its parts, how it embeds, rotates, norms and unembeds, and what its attention makes
    of scores (`attention`). Where its layer is built otherwise it overrides more:

    - `rotary` and `rotate` for several rotary bases, a part of each head, or none;
    - `attn_out` and `mlp_out` for norms of what a sublayer adds, with `is_plain_projection` False where attention is then no
      longer linear in z: `join` and `head_out` go by differences of two calls there;
    - `join` for blocks in which attention and MLP run side by side.
    """

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the configurations that the family reads."""

    reads: ClassVar[frozenset[str]]
    """Fields of the configuration that the family honours (`fields`); any other that changes what is computed is refused."""

    routed: ClassVar[bool] = False
    """Whether rows are routed to experts, so that rounding may send a row elsewhere."""

    hf: PreTrainedModel
    """The Hugging Face model. Only a family reads its parts."""
    offloaded: bool = False  # whether weights are kept in the CPU's memory or on disk and loaded as they are needed

    def __init__(self, hf: PreTrainedModel, cfg: ModelConfig, device: torch.device) -> None:
        self.hf, self.cfg, self.dtype, self.device = hf, cfg, cfg.dtype, device
        self.resid_dtype = torch.float64 if cfg.dtype == torch.float64 else torch.float32
        self.few_launches = device.type not in ("cpu", "meta")
        """Whether kernels are launched, and each launch costs: products share a buffer so that one kernel goes over it."""
        self._seen = [module for _, module in self._never_called()]
        self._has_longrope = has_longrope(hf.config.to_dict())
        self._positions_end = self.positions_end()
        if device.type == "cpu":
            keep_freed_memory()
        self.refuse_unsupported()

    @property
    def sizes(self) -> Sizes:
        """How much goes through the model together on its device."""
        return for_device(self.device)

    # ---- what would be computed wrongly is refused -----------------------------------------------------------------

    def refuse_unsupported(self) -> None:
        """Raises NotImplementedError or ValueError for anything on the model that the stages below would ignore."""
        found = list(self._never_called())
        n_layers = self._n_layers(self.hf)
        if n_layers != self.cfg.n_layers or len(found) != len(self._seen):
            raise ValueError(
                f"model: it has {n_layers} layers now and had {self.cfg.n_layers} when pycotmech looked at it; make a new "
                "pcm.Model of it"
            )
        refuse_rounded_products(self.dtype, self.devices)
        embedding: nn.Module = self.hf.get_input_embeddings()  # type: ignore[operator]
        now, before = (embedding.weight.dtype, device_of(embedding)), (self.dtype, self.device)
        if now != before:
            raise ValueError(
                f"model: its weights are {now[0]} on {now[1]} now and were {before[0]} on {before[1]} when pycotmech "
                "looked at it; make a new pcm.Model of it"
            )
        implementation = getattr(self.hf.config, "_experts_implementation", None)
        if self.routed and self.dtype == torch.float64 and implementation not in (None, "eager", "batched_mm"):
            raise ValueError(
                f"model: its experts are computed by {implementation!r}, which takes no float64; call "
                "set_experts_implementation('eager') on the Hugging Face model first"
            )
        refuse_chance(self.hf)
        for (name, module), seen in zip(found, self._seen, strict=True):
            if module is not seen:
                raise ValueError(f"model: {name} was replaced after pycotmech looked at it; make a new pcm.Model of the model")
            what = attached(module)
            if what:
                raise ValueError(
                    f"model: {name} carries {what}, which would be ignored, because a layer is computed stage by stage "
                    "and this module is never called as a whole; remove it, or put it on a projection, a norm or the MLP"
                )

    @abstractmethod
    def _never_called(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each module whose own forward never runs."""

    @abstractmethod
    def _n_layers(self, hf: PreTrainedModel) -> int:
        """Layers that the model's own forward pass runs now."""

    def positions_end(self) -> tuple[int, str] | None:
        """The largest number of tokens whose positions are computed, and why there are no more, as the rest of a sentence that
        names the model; None: any."""
        length = short_rope_length(self.hf.config.to_dict())
        return None if length is None else (length, f"has another rotary embedding (longrope) beyond {length}")

    def check_length(self, n: int, *, argument: str = "tokens") -> None:
        """Raises ValueError, naming `argument`, for n tokens of one text if the model has fewer positions."""
        if self._positions_end is not None and n > self._positions_end[0]:
            raise ValueError(f"{argument}: the prompt has {n} tokens, but the model {self._positions_end[1]}")

    @abstractmethod
    def is_plain(self) -> bool:
        """Whether every module is exactly the library's own with nothing attached: its output follows from its weights."""

    @abstractmethod
    def constants(self) -> tuple[float, ...]:
        """Numbers besides the weights that its output follows from."""

    def tensors(self) -> list[Tensor]:
        """All weights and buffers, save what a longrope writes anew in each pass from other buffers."""
        buffers = self.hf.named_buffers()
        if self._has_longrope:
            buffers = [(name, b) for name, b in buffers if not name.endswith("inv_freq") or name.endswith("original_inv_freq")]
        return [*self.hf.parameters(), *(buffer for _, buffer in buffers)]

    def is_quantised(self) -> bool:
        """Whether some weights are not ordinary tensors of floating-point numbers."""
        return not all(type(p) in (nn.Parameter, Tensor) and p.is_floating_point() for p in self.hf.parameters())

    def device_of(self, l: int) -> torch.device:
        """Where layer l runs. Each stage takes rows on any device and returns its result there (`families.placed`)."""
        return self.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices on which some part runs, each once; the first is `device`."""
        return (self.device,)

    # ---- the model's own modules, for hooks --------------------------------------------------------------------------

    @abstractmethod
    def sublayers(self, l: int) -> tuple[str, str]:
        """Names of the attention module and of the MLP module of a layer in the Hugging Face model."""

    def sublayer_scale(self, l: int) -> float:
        """What their outputs are multiplied by before they are added to the residual stream."""
        return 1.0

    @abstractmethod
    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        """Name of the module of the Hugging Face model that reads or gives "q", "k", "v" or "z", perhaps among others (`tapped`
        has them apart), or "final" (resid_post of the last layer [B, T, d]), and which of the two."""

    def tapped(self, site: str, x: Tensor) -> Tensor:
        """What the module of `tap` reads or gives, [B, T, ...] as it is there -> the site's part [B, T, heads, D]."""
        return x.unflatten(-1, (-1, self.cfg.d_head))

    def differentiable_attention(self) -> str:
        """The implementation in transformers that honours what `attention` says of every layer and has a backward pass."""
        rules = [self.attention(l) for l in range(self.cfg.n_layers)]
        return "eager" if any(rule.softcap or rule.sinks is not None for rule in rules) else "sdpa"

    @abstractmethod
    def widened(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the Hugging Face modules compute for tokens [T] in float32, one layer's weights widened at a time.

        By the names of `sublayers` what each adds [T, d], and "logits" [T, V]; on the CPU.
        """

    # ---- the stages of a forward pass, on rows -----------------------------------------------------------------------

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Token ids [R] at positions [R] -> residual rows [R, d]."""

    @abstractmethod
    def rotary(self, positions: Tensor) -> Tensor:
        """The angles of positions [R] as `rotate` takes them: [kinds of layers, 2 (cos, sin), R, D], in float32 whatever the
        model's dtype."""

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        """Rotates queries and keys [n, heads, D] of a layer in place; rows: which of the angles' rows they are, None: all."""
        cos, sin = angles[self._rotary_kind(l)]
        if rows is not None:
            cos, sin = (t[rows] if isinstance(rows, slice) else t.index_select(0, rows) for t in (cos, sin))
        for x in side_by_side((*queries, *keys)):
            ops.rope(x, cos, sin)

    def rotate_into(
        self, l: int, angles: Tensor, rows: slice, q: Tensor | None, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor
    ) -> bool:
        """Rotates queries [n, H, D] in place, and puts rotated keys and values [n, Hkv, D] where they are kept, in one launch.
        False, and nothing is done, on a CPU and where rotations are of another kind."""
        if not self.few_launches or type(self).rotate is not Family.rotate:
            return False
        cos, sin = angles[self._rotary_kind(l)][:, rows]
        ops.rope_keys(q, k, v, cos, sin, k_own, v_own)
        return True

    def _rotary_kind(self, l: int) -> int:
        return 0

    @abstractmethod
    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """resid_pre [R, d] -> q [R, H, D], k [R, Hkv, D], v [R, Hkv, D], before the rotary embedding."""

    def qkv_after(self, l: int, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """resid_mid [R, d] of the layer before becomes resid_pre in place, by what its MLP adds [R, d]; then as `qkv`."""
        x += added
        return self.qkv(l, x)

    @abstractmethod
    def attention(self, l: int) -> LayerAttention:
        """What the layer makes of the products of queries and keys: scale, window, soft-cap, sinks, softmax."""

    def row_table(
        self, own: Tensor, within: Tensor, shared: Tensor, n_shared: Tensor, *, own_keys: int, shared_keys: int
    ) -> Tensor:
        """Which keys each of R packed rows may see, as `ops.prefix_attn` takes it: int32 [R, 4] on the model's device.

        own [R]: where the own keys of the row's variant (or sequence) begin; within [R]: the row's own key among these;
        shared [R]: where the keys begin that it shares with others; n_shared [R]: how many of them come before its own.
        Rows are causal: all of the shared keys, and its own up to itself. A window is the layer's (`attention`).
        own_keys, shared_keys: how many keys of each kind there are. Raises ValueError for a range that is not among them: the
        table is checked here, on the CPU, and not where layers use it.
        """
        table = torch.stack((own, own + within + 1, shared, shared + n_shared), 1).to(torch.int32)
        ops.check_rows(table, own_keys, shared_keys)
        return table.to(self.device)

    def attend(
        self, l: int, q: Tensor, k_shared: Tensor, v_shared: Tensor, k_own: Tensor, v_own: Tensor, table: Tensor,
        cuts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """z [R, H, D] of rows q [R, H, D] over the keys that `row_table` gives them, all after the rotary embedding; arguments
        as in `ops.prefix_attn`. On a GPU it asks nothing of the device."""
        return self.attention(l).packed(q, k_shared, v_shared, k_own, v_own, table, cuts)

    def pattern(self, l: int, q: Tensor, k: Tensor, positions: Sequence[int] | Tensor) -> Tensor:
        """Attention weights [n, H, T], in the residual stream's dtype, of queries [n, H, D] at `positions` over keys
        [T, Hkv, D] of positions 0 .. T - 1, after the rotary embedding; 0 where a key is not seen."""
        return self.attention(l).pattern(q.to(self.resid_dtype), k.to(self.resid_dtype), positions)

    @abstractmethod
    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        """resid_mid [R, d] -> what the MLP adds, [R, d]."""

    def mlp_after(self, l: int, x: Tensor, added: Tensor) -> Tensor:
        """resid_pre [R, d] becomes resid_mid in place, by what attention adds [R, d]; what the MLP adds to that, [R, d]."""
        x += added
        return self.mlp_out(l, x)

    # ---- from z to the residual stream -------------------------------------------------------------------------------

    @abstractmethod
    def _output_projection(self, l: int) -> nn.Linear | Conv1D:
        """The module W_O: [R, H * D] -> [R, d]; or what was put in its place, whose weights are not read."""

    def _output_weight(self, l: int) -> Tensor:
        """W_O of a plain projection as a linear layer has it, [d, H * D]; never a copy."""
        projection = self._output_projection(l)
        weight = weight_of(projection)
        return weight.T if isinstance(projection, Conv1D) else weight

    def attn_out(self, l: int, z: Tensor) -> Tensor:
        """z [R, H, D] -> what attention adds to the residual stream, [R, d]."""
        return self._projected(l, z)

    def _projected(self, l: int, z: Tensor) -> Tensor:
        """z [R, H, D] -> z W_O and its bias, [R, d]."""
        return linear(self._output_projection(l), z.reshape(len(z), -1))

    def _has_plain_weights(self, l: int) -> bool:
        """Whether `_projected` is z times a matrix (and perhaps a bias), with nothing attached."""
        return is_exactly(self._output_projection(l), nn.Linear, Conv1D)

    def head_out(self, l: int, z: Tensor) -> Tensor:
        """z [R, H, D] -> what each head alone adds to the residual stream, [R, H, d] in its dtype, without `attn_bias`.

        Of a projection that something is attached to: its output on one head's z and zeros, less its output on zeros.
        """
        R, H, D = z.shape
        if self._has_plain_weights(l):
            weight = self._output_weight(l).to(self.resid_dtype).unflatten(1, (H, D))  # [d, H, D]
            return torch.einsum("rhd,ohd->rho", z.to(self.resid_dtype), weight)
        alone = torch.zeros(R, H, H, D, dtype=z.dtype, device=z.device)
        heads = torch.arange(H, device=z.device)
        alone[:, heads, heads] = z
        out = self._projected(l, alone.flatten(0, 1)).to(self.resid_dtype) - self._projection_bias(l)  # [R * H, d]
        return out.unflatten(0, (R, H))

    def attn_bias(self, l: int, z: Tensor) -> Tensor:
        """What attention adds to rows with z [R, H, D] that is of no head, [R, d] in the residual stream's dtype: with
        `head_out` of all heads it makes up `attn_out`. Zeros for most models."""
        return self._projection_bias(l).expand(len(z), -1)

    def _projection_bias(self, l: int) -> Tensor:
        """The output projection of zeros, [d] in the residual stream's dtype on the layer's device."""
        cfg, projection, device = self.cfg, self._output_projection(l), self.device_of(l)
        if self._has_plain_weights(l) and projection.bias is None:
            return torch.zeros(cfg.d_model, dtype=self.resid_dtype, device=device)
        nothing = torch.zeros(1, cfg.n_heads, cfg.d_head, dtype=self.dtype, device=device)
        return self._projected(l, nothing)[0].to(self.resid_dtype)

    def added_scale(self, l: int, z: Tensor) -> Tensor | None:
        """What z W_O (and its bias) of rows z [R, H, D] is multiplied by before it is added, [R, d]; None if it is not."""
        return None

    def head_change(self, l: int, h: int, z: Tensor, values: Tensor) -> Tensor:
        """The change of what attention adds to a row where z of head h becomes each of `values` [n, D], [n, d] in the residual
        stream's dtype; z [H, D] of all heads as it is."""
        wide = self.resid_dtype
        if self.is_plain_projection(l):
            return (values.to(wide) - z[h].to(wide)) @ self._head_matrix(l)[h]
        rows = z.to(self.dtype).repeat(len(values), 1, 1)
        rows[:, h] = values.to(self.dtype)
        return self.attn_out(l, rows).to(wide) - self.attn_out(l, z[None].to(self.dtype)).to(wide)

    def output_matrix(self, l: int) -> Tensor:
        """W_O by head, [H, D, d] in the residual stream's dtype; of an adapted or quantised projection the matrix that it
        amounts to. Where a norm follows attention, its output is multiplied by `added_scale`."""
        return self._head_matrix(l)

    def _head_matrix(self, l: int) -> Tensor:
        """`output_matrix` on the layer's device."""
        cfg, wide = self.cfg, self.resid_dtype
        n = cfg.n_heads * cfg.d_head
        if self._has_plain_weights(l):
            matrix = self._output_weight(l).detach().to(wide).T
        else:
            unit = torch.eye(n, dtype=self.dtype, device=self.device_of(l)).view(n, cfg.n_heads, cfg.d_head)
            matrix = (self._projected(l, unit) - self._projected(l, torch.zeros_like(unit[:1]))).to(wide)
        return matrix.reshape(cfg.n_heads, cfg.d_head, -1)

    def is_plain_projection(self, l: int) -> bool:
        """Whether what attention adds is z times a matrix (and perhaps a bias), with nothing attached."""
        return self._has_plain_weights(l)

    def join(self, l: int, x_mid: Tensor, z: Tensor, dz: Tensor, heads: Tensor, index: Tensor | None = None) -> Tensor:
        """resid_mid of rows in which one head's z was changed, by the difference: x_mid + dz[r] W_O[heads[r]].

        x_mid [R, d] and z [R, H, D] of the unedited run (with index [R]: z of more rows, and which they are); dz [R, D] the
        change of z; heads [R] the head of each row; or of n heads in each row: dz [R, n, D], heads [R, n]. The other heads'
        z does not change, so the rest of attention's output is the unedited run's. W_O is never copied: one head reads its
        own columns, several are one call of the output projection on rows that are zero outside them.
        """
        plain = self.is_plain_projection(l)
        r = torch.arange(len(dz), device=dz.device).view(-1, *[1] * (heads.ndim - 1))
        if plain and heads.ndim == 1:
            return x_mid + ops.head_delta(dz.to(z.dtype), heads, self._output_weight(l))
        z = z if index is None else z[index]
        if plain:
            rows = torch.zeros_like(z)
            rows[r, heads] = dz.to(z.dtype)
            delta = product(rows.view(len(dz), -1), self._output_projection(l))
        else:  # whatever is attached to the projection may not be linear: the difference of two calls is still exact
            rows = z.clone()
            rows[r, heads] = (rows[r, heads].to(dz.dtype) + dz).to(z.dtype)
            delta = self.attn_out(l, rows).to(x_mid.dtype) - self.attn_out(l, z).to(x_mid.dtype)
        return x_mid + delta

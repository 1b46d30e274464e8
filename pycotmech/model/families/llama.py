"""What a model family calls its parts, and how one of its layers is computed, stage by stage, on packed rows.

The engine never runs a Hugging Face block as a whole: it needs the stages apart, on rows of many sequences and variants at
once. The adapter owns the arithmetic of a stage and nothing else. It uses the model's own modules and weights, never a copy:
a module that is exactly the library's own (no hooks, no replaced forward) is computed by a fused op from its weights; any
other (an adapter, a quantised projection, a hooked module) is called as it is. Modules that are never called as a whole,
such as the decoder layer, must carry no hooks: `refuse_unsupported` says which one does.

The residual stream is kept in float32 (float64 for a float64 model); matrix products get inputs in the model's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama

from pycotmech import ops
from pycotmech.model import work
from pycotmech.model.config import ModelConfig

VOCAB_SLICE = 8192
"""Rows of the unembedding that are widened to float32 at a time: 128 MiB for Llama-2 7B."""

_LARGEST_MAPPED = 31 * 2**20
"""Bytes just below glibc's largest limit for mapped allocations (DEFAULT_MMAP_THRESHOLD_MAX)."""

_MLP_BYTES = 48 * 2**20
"""The MLP's hidden rows that exist at once on CPU: below twice _LARGEST_MAPPED, beyond which the heap is given back."""


class LlamaFamily:
    """Llama and models of its shape: pre-norm, rotary positions, SwiGLU, MHA or GQA, tied or untied unembedding.

    Where another family would differ, it overrides a method and the engine stays as it is: `join`, how a variant whose z
    changed comes back into the residual stream (a norm behind attention, parallel blocks); `row_table`, which keys a packed
    row sees (here: causal, what variants share in front of its own); `attend`, what a row makes of these keys in a given
    layer (a window, a soft cap, another scale). Keys are rotated before they are kept: `rotary` gives the angles.
    """

    model_types = ("llama",)

    plain_attention = True
    """Whether `attend` is a softmax over all keys in front and nothing else, which PyTorch's own attention computes as well."""

    def __init__(self, hf: nn.Module) -> None:
        config = hf.config
        self.hf = hf
        self.base = hf.model
        self.layers = list(hf.model.layers)
        self.dtype = hf.model.embed_tokens.weight.dtype
        self.device = hf.model.embed_tokens.weight.device
        self.resid_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.cfg = ModelConfig(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_key_value_heads=config.num_key_value_heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            d_mlp=config.intermediate_size,
            d_vocab=config.vocab_size,
            n_ctx=config.max_position_embeddings,
            family=config.model_type,
            dtype=self.dtype,
        )
        self.scale = self.cfg.d_head**-0.5
        self._mlp_rows = max(256, _MLP_BYTES // (3 * self.cfg.d_mlp * self.dtype.itemsize)) if self._on_cpu else 2**62
        if self._on_cpu:
            _keep_freed_memory()
        self.refuse_unsupported()

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    # ---- what would be computed wrongly is refused -----------------------------------------------------------------

    def refuse_unsupported(self) -> None:
        """Raises NotImplementedError or ValueError for anything on the model that the stages below would ignore."""
        for name, module in self._never_called():
            what = _tampered(module)
            if what:
                raise ValueError(
                    f"model: {name} carries {what}, which would be ignored, because a layer is computed stage by stage "
                    "and this module is never called as a whole; remove it, or put it on a projection, a norm or the MLP"
                )
        if self.hf.training and getattr(self.hf.config, "attention_dropout", 0.0):
            raise ValueError("model: in training mode with attention_dropout > 0; call .eval() on it first")
        rope = getattr(self.hf.config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise NotImplementedError(
                f"model: rope_type {kind!r} changes with the length of the prompt; supported: default, linear, llama3, yarn"
            )

    def is_plain(self) -> bool:
        """Whether every module is exactly the library's own with nothing attached: its output follows from its weights."""
        llama = modeling_llama
        kinds: dict[str, tuple[type, ...]] = {
            "input_layernorm": (llama.LlamaRMSNorm,),
            "post_attention_layernorm": (llama.LlamaRMSNorm,),
            "mlp": (llama.LlamaMLP,),
            "mlp.act_fn": (SiLUActivation, nn.SiLU),
            **{f"self_attn.{name}": (nn.Linear,) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
            **{f"mlp.{name}": (nn.Linear,) for name in ("gate_proj", "up_proj", "down_proj")},
        }
        around = _plain(self.base.embed_tokens, nn.Embedding) and _plain(self.base.rotary_emb, llama.LlamaRotaryEmbedding)
        return around and all(_plain(layer.get_submodule(m), *kind) for layer in self.layers for m, kind in kinds.items())

    def constants(self) -> tuple[float, ...]:
        """Numbers besides the weights that its output follows from."""
        norms = (norm for layer in self.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        return (self.scale, float(self.base.rotary_emb.attention_scaling), *(norm.variance_epsilon for norm in norms))

    def _never_called(self):
        yield "the model itself", self.hf
        yield "model", self.base
        for l, layer in enumerate(self.layers):
            yield f"model.layers.{l}", layer
            yield f"model.layers.{l}.self_attn", layer.self_attn

    # ---- the stages of a forward pass, on rows ---------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [R] -> residual rows [R, d]."""
        return self.base.embed_tokens(tokens).to(self.resid_dtype)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [R] -> cos, sin [R, D], in float32 whatever the model's dtype."""
        like = torch.empty(0, dtype=self.resid_dtype, device=self.device)
        cos, sin = self.base.rotary_emb(like, position_ids=positions[None])
        return cos[0].contiguous(), sin[0].contiguous()

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """resid_pre [R, d] -> q [R, H, D], k [R, Hkv, D], v [R, Hkv, D], before the rotary embedding."""
        layer, D = self.layers[l], self.cfg.d_head
        n = self._norm(layer.input_layernorm, x)
        attn = layer.self_attn
        q, k, v = (self._linear(p, n).view(len(x), -1, D) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        # Queries and keys are rotated in place by the caller; what a hook on a projection kept must not change under it.
        return q if _plain(attn.q_proj, nn.Linear) else q.clone(), k if _plain(attn.k_proj, nn.Linear) else k.clone(), v

    def row_table(self, own: Tensor, within: Tensor, shared: Tensor, front: Tensor) -> Tensor:
        """Which keys each of R packed rows sees, as `ops.prefix_attn` takes it: int32 [R, 4] on the model's device.

        own [R]: where the own keys of the row's variant (or sequence) begin; within [R]: the row's own key among these;
        shared [R]: where the keys begin that it shares with others; front [R]: how many of them stand in front of its own.
        Rows are causal: all of the front, and its own keys up to itself.
        """
        return torch.stack((own, own + within + 1, shared, shared + front), 1).to(torch.int32).to(self.device)

    def attend(
        self, l: int, q: Tensor, k_shared: Tensor, v_shared: Tensor, k_own: Tensor, v_own: Tensor, table: Tensor,
        cuts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """z [R, H, D] of rows q [R, H, D] over the keys that `row_table` gives them, all after the rotary embedding; arguments
        as in `ops.prefix_attn`. On a GPU it asks nothing of the device."""
        return ops.prefix_attn(q, k_shared, v_shared, k_own, v_own, table, self.scale, cuts=cuts)[0]

    def attn_out(self, l: int, z: Tensor) -> Tensor:
        """z [R, H, D] -> what attention adds to the residual stream, [R, d]."""
        return self._linear(self.layers[l].self_attn.o_proj, z.reshape(len(z), -1))

    def head_out(self, l: int, z: Tensor) -> Tensor:
        """z [R, H, D] -> what each head alone adds to the residual stream, [R, H, d] in its dtype, without `attn_bias`.

        Of a projection that something is attached to: its output on one head's z and zeros, less its output on zeros.
        """
        o_proj, (R, H, D) = self.layers[l].self_attn.o_proj, z.shape
        if _plain(o_proj, nn.Linear):
            weight = o_proj.weight.to(self.resid_dtype).unflatten(1, (H, D))
            return torch.einsum("rhd,ohd->rho", z.to(self.resid_dtype), weight)
        alone = torch.zeros(R, H, H, D, dtype=z.dtype, device=z.device)
        each = torch.arange(H, device=z.device)
        alone[:, each, each] = z
        out = self.attn_out(l, alone.flatten(0, 1)).to(self.resid_dtype) - self.attn_bias(l)
        return out.unflatten(0, (R, H))

    def attn_bias(self, l: int) -> Tensor:
        """What attention of a layer adds where z is zero, [d] in the residual stream's dtype: zeros for most models."""
        cfg, o_proj = self.cfg, self.layers[l].self_attn.o_proj
        if _plain(o_proj, nn.Linear) and o_proj.bias is None:
            return torch.zeros(cfg.d_model, dtype=self.resid_dtype, device=self.device)
        nothing = torch.zeros(1, cfg.n_heads, cfg.d_head, dtype=self.dtype, device=self.device)
        return self.attn_out(l, nothing)[0].to(self.resid_dtype)

    def is_plain_projection(self, l: int) -> bool:
        """Whether a layer's output projection is a matrix (and perhaps a bias) with nothing attached."""
        return _plain(self.layers[l].self_attn.o_proj, nn.Linear)

    def join(self, l: int, x_mid: Tensor, z: Tensor, dz: Tensor, heads: Tensor, index: Tensor | None = None) -> Tensor:
        """resid_mid of rows in which one head's z was changed, by the difference: x_mid + dz[r] W_O[heads[r]].

        x_mid [R, d] and z [R, H, D] of the unedited run (with index [R]: z of more rows, and which they are); dz [R, D] the
        change of z; heads [R] the head of each row; or of n heads in each row: dz [R, n, D], heads [R, n]. The other heads'
        z does not change, so the rest of attention's output is the unedited run's. W_O is never copied: one head reads its
        own columns, several are one call of the output projection on rows that are zero outside them.
        """
        o_proj = self.layers[l].self_attn.o_proj
        r = torch.arange(len(dz), device=dz.device)
        r = r if heads.ndim == 1 else r[:, None]
        if _plain(o_proj, nn.Linear) and heads.ndim == 1:
            return x_mid + ops.head_delta(dz.to(z.dtype), heads, o_proj.weight)
        z = z if index is None else z[index]
        if _plain(o_proj, nn.Linear):
            rows = torch.zeros_like(z)
            rows[r, heads] = dz.to(z.dtype)
            delta = ops.linear(rows.view(len(dz), -1), o_proj.weight, None)
        else:  # whatever is attached to the projection may not be linear: the difference of two calls is still exact
            rows = z.clone()
            rows[r, heads] = (rows[r, heads].to(dz.dtype) + dz).to(z.dtype)
            delta = self.attn_out(l, rows).to(x_mid.dtype) - self.attn_out(l, z).to(x_mid.dtype)
        return x_mid + delta

    def mlp_out(self, l: int, x: Tensor) -> Tensor:
        """resid_mid [R, d] -> what the MLP adds, [R, d]."""
        layer = self.layers[l]
        n = self._norm(layer.post_attention_layernorm, x)
        mlp = layer.mlp
        if not _plain(mlp, modeling_llama.LlamaMLP) or not _plain(mlp.act_fn, SiLUActivation, nn.SiLU):
            return mlp(n[None])[0]
        parts = []
        for some in n.split(self._mlp_rows):
            hidden = ops.swiglu(self._linear(mlp.gate_proj, some), self._linear(mlp.up_proj, some))
            parts.append(self._linear(mlp.down_proj, hidden))
            del hidden
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def logits(self, x: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """resid_post of the last layer [R, d] -> logits [R, V], or only those of `token_ids` [K]: [R, K].

        Float32 (float64 for a float64 model) throughout: rounding logits to bfloat16 would cost more precision than all
        the layers below. Cost: the unembedding's weights are widened a slice of the vocabulary at a time.
        """
        work.count_logits(self, len(x), None if token_ids is None else len(token_ids))
        return self.unembed(self.final_norm(x), token_ids)

    def final_norm(self, x: Tensor) -> Tensor:
        """resid_post of the last layer [R, d] -> what the unembedding reads, [R, d]; as precise as `logits` needs it."""
        norm = self.base.norm
        if not self.plain_unembedding() or not _plain(norm, modeling_llama.LlamaRMSNorm):
            return self._norm(norm, x)
        return ops.add_rms_norm(x, None, norm.weight.to(x.dtype), norm.variance_epsilon)

    def unembed(self, n: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Normalised rows [R, d] -> logits [R, V] or [R, K], as `logits`."""
        head = self.hf.lm_head
        if not self.plain_unembedding():
            out = self._linear(head, n.to(self.dtype)).to(self.resid_dtype)
            return out if token_ids is None else out[:, token_ids]
        weight = head.weight if token_ids is None else head.weight[token_ids]
        if weight.dtype == n.dtype:
            out = ops.linear(n, weight, None).to(self.resid_dtype)
        elif weight.is_cuda:
            out = torch.mm(n.to(weight.dtype), weight.T, out_dtype=self.resid_dtype)
        else:
            out = torch.empty(len(n), len(weight), dtype=n.dtype)
            for a in range(0, len(weight), VOCAB_SLICE):
                b = min(a + VOCAB_SLICE, len(weight))
                out[:, a:b] = ops.linear(n, weight[a:b].to(n.dtype), None)
        if head.bias is not None:
            out += head.bias if token_ids is None else head.bias[token_ids]
        return out

    def plain_unembedding(self) -> bool:
        """Whether the unembedding is a matrix (and perhaps a bias) with nothing attached."""
        return _plain(self.hf.lm_head, nn.Linear)

    # ---- one module: fused when it is exactly the library's own, called otherwise ----------------------------------

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        if _plain(module, modeling_llama.LlamaRMSNorm):
            return ops.add_rms_norm(x, None, module.weight, module.variance_epsilon)
        return module(x.to(self.dtype)[None])[0]

    def _linear(self, module: nn.Module, x: Tensor) -> Tensor:
        if _plain(module, nn.Linear):
            return ops.linear(x, module.weight, module.bias)
        return module(x[None])[0]


def _keep_freed_memory() -> None:
    """Lets the C library keep memory that a block of rows frees for the next block.

    glibc maps every large allocation anew, or gives the freed end of the heap back to the system, and the system clears each
    page when it is touched again: a tenth of a sweep of a small model. Both limits follow the largest allocation that was
    ever mapped and freed, up to 32 MiB; this is one. The memory that is kept is at most twice that. Other C libraries: nothing.
    """
    torch.empty(_LARGEST_MAPPED, dtype=torch.uint8, device="cpu")


def _tampered(module: nn.Module) -> str | None:
    """What on this module would change its forward: hooks, a replaced forward; None if nothing."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # transformers leaves its own output recorders on a model after the first output_hidden_states=True; they change nothing.
    if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
        return "forward hooks"
    if "forward" in module.__dict__:
        return "a replaced forward method"
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "global forward hooks"
    return None


def _plain(module: nn.Module, *types: type) -> bool:
    """Whether the module is exactly of one of these classes, with nothing attached to it."""
    return type(module) in types and _tampered(module) is None and not nn.utils.parametrize.is_parametrized(module)


FAMILIES = (LlamaFamily,)


def family_of(hf: nn.Module) -> LlamaFamily:
    """The adapter for a Hugging Face causal language model; ValueError names the model type and the supported ones."""
    kind = getattr(getattr(hf, "config", None), "model_type", None)
    for family in FAMILIES:
        if kind in family.model_types and hasattr(hf, "lm_head"):
            return family(hf)
    supported = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"model: {type(hf).__name__} (model_type {kind!r}) is not supported; "
        f"expected a Hugging Face causal language model with model_type {supported}"
    )

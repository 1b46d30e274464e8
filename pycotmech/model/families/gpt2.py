"""GPT-2: LayerNorm, learned positions, projections stored as Conv1D, a tied unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.gpt2 import modeling_gpt2
from transformers.pytorch_utils import Conv1D

from pycotmech.model.families.layer_norm import JointLayerNorm
from pycotmech.model.families.one_module import is_exactly


class GPT2Family(JointLayerNorm):
    """`Family` of GPT2LMHeadModel. Positions are learned and added to the embedding; nothing is rotated."""

    model_types = ("gpt2",)
    reads = frozenset({
        "activation_function", "layer_norm_epsilon", "n_ctx", "n_embd", "n_head", "n_inner", "n_layer", "n_positions",
        "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "summary_activation",
        "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "tie_word_embeddings",
    })  # fmt: skip

    trunk, embedding, stack, last_norm = "transformer", "wte", "h", "ln_f"
    attention_name = "attn"
    norms = ("ln_1", "ln_2")
    inputs, output = ("attn.c_attn",), "attn.c_proj"
    mlp_parts = ("mlp.c_fc", "mlp.c_proj")
    embedding_dropout = "drop"
    dropouts = ("attn.attn_dropout", "attn.resid_dropout", "mlp.dropout")
    projection_type = Conv1D
    classes: ClassVar = {"mlp": modeling_gpt2.GPT2MLP}

    def _d_mlp(self, config: Any) -> int:
        return config.n_inner or 4 * config.hidden_size

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = super().embed(tokens, positions)
        return x + self.base.wpe(positions).to(x)

    def positions_end(self) -> tuple[int, str]:
        return self.cfg.n_ctx, f"has learned {self.cfg.n_ctx} positions"

    def is_plain(self) -> bool:
        return super().is_plain() and is_exactly(self.base.wpe, nn.Embedding)

    def rotary(self, positions: Tensor) -> Tensor:
        return torch.empty(1, 2, len(positions), 0, dtype=self.resid_dtype, device=self.device)

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        """Nothing."""

    def _split(self, joint: Tensor) -> tuple[Tensor, ...]:
        return joint.view(len(joint), 3, self.cfg.n_heads, self.cfg.d_head).unbind(1)

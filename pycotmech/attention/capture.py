"""Collect attention statistics of a Hugging Face model's own forward passes, generate() included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pycotmech.attention.hf import NAME, RealKeys, active_capture, compacted, register_attention
from pycotmech.attention.results import AttentionSummary
from pycotmech.attention.segments import Labelled, SegmentRule, Segments
from pycotmech.attention.statistics import LayerStatistics, Readout, Wanted, read_layer
from pycotmech.model.families.attention import LayerAttention

if TYPE_CHECKING:
    from pycotmech.model import Model


@contextmanager
def capture_attention(
    model: Model | nn.Module | None = None,
    *,
    segments: Segments | None = None,
    top_k: int = 8,
    entropy: bool = True,
    received: bool = True,
    readout: Readout | None = None,
) -> Iterator[AttentionCapture]:
    """Collects the attention statistics of every forward pass inside the block.

        with pcm.capture_attention(hf, segments={"question": slice(5, 20)}) as summary:
            hf.generate(ids, max_new_tokens=30)
        summary.mass            # [B, L, H, R, G]: R rows, those of the prompt and of each generated token that was read

    model: runs on attn_implementation "pycotmech" inside the block and on its own again afterwards; None: whichever models
        run on it already.
    segments: as for `attention_summary`, positions being columns of input_ids (padding included), counted from the front;
        they may lie beyond the prompt, and an open slice takes in generated tokens. "first" is each prompt's first real token.
    top_k, entropy, received, readout: as for `attention_summary` (readout: "value_norm" or a callable).

    Only the block's own thread (context) is recorded, nothing is kept outside, and an inner block hides an outer one.
    Raises TypeError or ValueError naming the argument. Cost: that of `attention_summary`'s statistics; results on the CPU.
    """
    if isinstance(readout, (Tensor, np.ndarray)):
        raise ValueError("readout: an array cannot cover tokens still to be generated; expected 'value_norm' or a callable")
    register_attention()
    capture = AttentionCapture(Wanted(top_k, entropy, received, readout), SegmentRule(segments, growing=True))
    hf = None if model is None else _checked_model(getattr(model, "hf", model))
    before = None if hf is None else hf.config._attn_implementation
    if hf is not None:
        hf.set_attn_implementation(NAME)
    token = active_capture.set(capture)
    try:
        yield capture
    finally:
        active_capture.reset(token)
        if hf is not None and before is not None:
            hf.set_attn_implementation(before)


def _checked_model(hf: object) -> PreTrainedModel:
    if not isinstance(hf, PreTrainedModel):
        raise TypeError(f"model: got {type(hf).__name__}; expected a pycotmech or Hugging Face model, or None")
    if not hf._can_set_attn_implementation():  # transformers would only log it, and run the model's own attention
        raise ValueError(
            f"model: the attention of {type(hf).__name__} is written into the model in transformers; expected one whose "
            "attention implementation can be chosen"
        )
    return hf


class AttentionCapture:
    """The forward passes of one block. Statistics as in `AttentionSummary`, always with the batch axis B first.

    forwards: one `AttentionSummary` for each completed forward pass. Attributes and methods of `AttentionSummary` (.mass,
    .entropy, .plot() ...) are those of `joined()`.
    """

    def __init__(self, wanted: Wanted, rule: SegmentRule) -> None:
        self.forwards: list[AttentionSummary] = []
        self._wanted, self._rule = wanted, rule
        self._layers: list[LayerStatistics] = []  # of the forward pass that is running
        self._labelled = Labelled((), torch.empty(0, dtype=torch.int32))
        self._joined: tuple[int, AttentionSummary] | None = None

    def __len__(self) -> int:
        return len(self.forwards)

    def __repr__(self) -> str:
        return f"AttentionCapture({len(self)} forward passes)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not (name in AttentionSummary.__dataclass_fields__ or hasattr(AttentionSummary, name)):
            raise AttributeError(f"AttentionCapture has no attribute {name!r}")
        return getattr(self.joined(), name)

    def joined(self) -> AttentionSummary:
        """The forward passes as one summary: their rows one after another, attention received added up.

        Raises ValueError where there is none, or where they do not continue each other (other prompts): use `.forwards`.
        """
        if not self.forwards:
            raise ValueError(
                f"no forward pass was captured: none ran to its end inside the block with attn_implementation {NAME!r}; "
                "give capture_attention the model"
            )
        if self._joined is None or self._joined[0] != len(self.forwards):
            self._joined = (len(self.forwards), _join(self.forwards))
        return self._joined[1]

    # ---- called by the attention function, once per layer ------------------------------------------------------------

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys, attention: LayerAttention) -> Tensor:
        """Computes a layer's attention, z [B, H, T, D], and keeps its statistics."""
        layer, config = getattr(module, "layer_idx", -1), cast(PreTrainedConfig, module.config)
        if layer == 0:  # a new forward pass; one that broke off is dropped
            self._layers, self._labelled = [], self._rule.label(keys.end, keys.starts, len(q))
        if layer != len(self._layers):
            raise RuntimeError(
                f"capture_attention: layer {layer} ran after {len(self._layers)} layers; expected each forward pass to run its "
                "layers in order, from 0"
            )
        read = self._read if keys.real is None else self._read_compacted
        z, statistics = read(layer, q, k, v, keys, attention)
        self._layers.append(statistics.on_cpu())
        if len(self._layers) == config.num_hidden_layers:
            self._finish(q.shape[2], keys)
        return z

    def _read(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys, attention: LayerAttention
    ) -> tuple[Tensor, LayerStatistics]:
        return read_layer(
            layer,
            q,
            k,
            v,
            wanted=self._wanted,
            labels=self._labelled.labels.to(q.device),
            n_segments=len(self._labelled.names),
            starts=keys.starts,
            attention=attention,
        )

    def _read_compacted(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys, attention: LayerAttention
    ) -> tuple[Tensor, LayerStatistics]:
        """Each example without its padding; its results at the places of its real tokens, rows of padding empty."""
        assert keys.real is not None
        z, found = torch.zeros_like(q), None
        labels = self._labelled.labels.to(q.device).expand(len(q), -1)
        for b, rows, real in compacted(keys.real, q.shape[2]):
            one = slice(b, b + 1)
            out, part = read_layer(
                layer,
                q[one, :, rows],
                k[one, :, real],
                v[one, :, real],
                wanted=self._wanted,
                labels=labels[b, real].contiguous(),
                n_segments=len(self._labelled.names),
                attention=attention,
            )
            z[b, :, rows] = out[0]
            found = found or _empty(part, len(q), q.shape[2], keys.end)
            for name, value in part._asdict().items():
                if value is None:
                    continue
                if name == "top_keys":
                    value = torch.where(value >= 0, real[value.clamp_min(0)].int(), -1)
                getattr(found, name)[b, :, real if name == "received" else rows] = value[0]
        if found is None:
            raise ValueError("attention_mask: no example has a real token in this forward pass")
        return z, found

    def _finish(self, T: int, keys: RealKeys) -> None:
        layers, self._layers = self._layers, []
        stacked = {
            name: None if getattr(layers[0], name) is None else torch.stack([getattr(s, name) for s in layers], 1).numpy()
            for name in LayerStatistics._fields
        }
        batch = len(layers[0].lse)
        self.forwards.append(
            AttentionSummary(
                **stacked,  # type: ignore[arg-type]
                segment_names=self._labelled.names,
                rows=np.arange(keys.end - T, keys.end),
                tokens=None,
                labels=self._labelled.labels.expand(batch, -1).numpy(),
            )
        )


def _empty(like: LayerStatistics, B: int, T: int, S: int) -> LayerStatistics:
    """Statistics of rows that see no key."""
    fill = {"lse": -torch.inf, "top_keys": -1}

    def shape(name: str, x: Tensor) -> tuple[int, ...]:
        return (B, x.shape[1], S) if name == "received" else (B, x.shape[1], T, *x.shape[3:])

    return LayerStatistics(
        **{n: None if x is None else x.new_full(shape(n, x), fill.get(n, 0)) for n, x in like._asdict().items()}  # type: ignore[arg-type]
    )


def _join(forwards: list[AttentionSummary]) -> AttentionSummary:
    for a, b in pairwise(forwards):
        if b.rows[0] != a.rows[-1] + 1 or len(a.mass) != len(b.mass) or a.segment_names != b.segment_names:
            raise ValueError(
                f"the {len(forwards)} captured forward passes do not continue each other, so they have no common rows; "
                "look at .forwards, one summary for each"
            )
    last = forwards[-1]
    S = last.labels.shape[-1]
    values: dict[str, Any] = {}
    for name in LayerStatistics._fields:
        parts = [getattr(f, name) for f in forwards]
        if parts[0] is None:
            values[name] = None
        elif name == "received":
            values[name] = np.zeros((*parts[0].shape[:-1], S), parts[0].dtype)
            for part in parts:
                values[name][..., : part.shape[-1]] += part
        else:
            values[name] = np.concatenate(parts, axis=3)
    rows = np.concatenate([f.rows for f in forwards])
    return AttentionSummary(**values, segment_names=last.segment_names, rows=rows, tokens=None, labels=last.labels)

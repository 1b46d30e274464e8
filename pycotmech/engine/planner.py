"""How a sweep is cut so that it fits the memory it may use, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pycotmech._words import plural
from pycotmech.display import Described, Facts
from pycotmech.engine.bases import Stage
from pycotmech.engine.memory import free_bytes
from pycotmech.engine.metrics import KL_VALUES
from pycotmech.engine.rows import Variants
from pycotmech.model.arguments import check_memory
from pycotmech.model.config import layer_flop, logits_flop, mlp_weights, mlp_width
from pycotmech.model.families.base import Family
from pycotmech.model.families.readout import VOCAB_SLICE
from pycotmech.model.packed import site_bytes

_SHARE_OF_FREE = 0.5


@dataclass(frozen=True)
class Plan(Described):
    """What a sweep did, or will do.

    chunks: pieces of variants that go through the layers one after another; rows: residual rows of all variants.
    token_forwards: rows through an MLP divided by the number of layers: the work in whole forward passes of one token.
    base_token_forwards: the same of the prompts' own runs; what they share is counted even where it is kept from a call
        before.
    hooked_token_forwards: the same for one hooked forward pass per variant, and position at which it is read.
    flop: of the matrix products, attention and the unembedding, prompts and variants.
    weight_bytes: weights read, once for each layer and block of rows that go through it together.
    bytes_in_flight: memory beyond the model at the worst moment; budget_bytes: what is allowed.
    """

    examples: int
    variants: int
    chunks: int
    rows: int
    token_forwards: float
    hooked_token_forwards: float
    flop: float
    bytes_in_flight: int
    budget_bytes: int
    base_token_forwards: float = 0.0
    weight_bytes: int = 0

    def described(self) -> Facts:
        saved = self.hooked_token_forwards / max(self.token_forwards + self.base_token_forwards, 1e-9)
        work = {
            "variants": f"{self.token_forwards:,.0f} token-forwards",
            "prompts": f"{self.base_token_forwards:,.0f} token-forwards",
            "one hooked forward per variant": f"{self.hooked_token_forwards:,.0f} token-forwards, {saved:,.1f} times as many",
            "products": f"{self.flop / 1e12:,.2f} TFLOP",
            "weights read": f"{self.weight_bytes / 2**30:,.1f} GiB",
        }
        memory = {
            "in flight at most": f"{self.bytes_in_flight / 2**30:,.2f} GiB",
            "allowed": f"{self.budget_bytes / 2**30:,.1f} GiB",
        }
        size = {"chunks": f"{self.chunks:,}", "rows": f"{self.rows:,}"}
        title = f"Plan: {self.variants:,} variants of {plural(self.examples, 'example')}"
        return Facts(title, {**size, "work": work, "memory beyond the model": memory})

    def __str__(self) -> str:
        return (
            f"{self.variants} variants of {plural(self.examples, 'example')} in {plural(self.chunks, 'chunk')}, "
            f"{self.rows} rows: {self.token_forwards:,.0f} token-forwards and {self.base_token_forwards:,.0f} of the prompts "
            f"(one hooked forward per variant: {self.hooked_token_forwards:,.0f}), {self.flop / 1e12:.2f} TFLOP, "
            f"{self.weight_bytes / 2**30:.1f} GiB of weights read, {self.bytes_in_flight / 2**30:.2f} GiB in flight "
            f"of {self.budget_bytes / 2**30:.1f} GiB allowed"
        )


@dataclass(frozen=True)
class Work:
    """Of some rows through the layers: `Plan` says what is counted. Additive."""

    layer_rows: float = 0.0
    flop: float = 0.0
    weight_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.layer_rows + other.layer_rows, self.flop + other.flop, self.weight_bytes + other.weight_bytes)


def memory_budget(memory_gb: float | None, *devices: torch.device) -> int:
    """Bytes a sweep may use beyond the model, on each of the devices on which the model lies: what the user set, or half of
    what is free where least is."""
    if (given := check_memory(memory_gb)) is not None:
        return int(given * 2**30)
    return int(min(map(free_bytes, devices)) * _SHARE_OF_FREE)


def row_bytes(family: Family) -> int:
    """A residual row in flight, its entries in the row tables, and where these are looked up once its angles, of two kinds of
    layers at most."""
    cfg, wide = family.cfg, family.resid_dtype.itemsize
    return cfg.d_model * wide + 7 * 8 + (4 * cfg.d_head * wide if family.few_launches else 0)


def block_bytes(family: Family, rows: int) -> int:
    """Temporaries of one block of rows: projections and the MLP's hidden layer, or those of a join."""
    cfg, wide = family.cfg, family.resid_dtype.itemsize
    heads = cfg.n_heads * cfg.d_head
    copies = 1 if cfg.mixture is None else cfg.mixture.n_chosen  # of a row, for its experts
    mlp = (3 * mlp_width(cfg) + 2 * copies * cfg.d_model) * family.dtype.itemsize
    attention = (2 * cfg.d_model + 2 * heads + 2 * cfg.n_key_value_heads * cfg.d_head) * family.dtype.itemsize
    join = 3 * heads * family.dtype.itemsize + (2 * cfg.d_model + 6 * cfg.d_head) * wide
    return rows * (max(mlp, attention, join) + 2 * cfg.d_head * wide + 100)


def logits_bytes(family: Family, rows: int, columns: int | None) -> int:
    """Temporaries of the unembedding and the metric of `rows` rows, for all tokens (columns None) or for some."""
    cfg, wide = family.cfg, family.resid_dtype.itemsize
    if columns is not None:
        return rows * (columns * 3 + cfg.d_model) * wide
    widened = 0 if family.dtype == family.resid_dtype else min(VOCAB_SLICE, cfg.d_vocab) * (cfg.d_model + rows) * wide
    return (
        rows * (cfg.d_vocab + cfg.d_model) * wide + widened + (3 * min(KL_VALUES[0], rows * cfg.d_vocab) + 4 * cfg.d_vocab) * 8
    )


def prompt_bytes(family: Family, length: int, rows: int, sites: Sequence[str]) -> int:
    """Keys and values of one prompt of `length` positions, as if in the residual stream's dtype, and these sites of so many of
    its rows."""
    cfg, wide = family.cfg, family.resid_dtype.itemsize
    kept = sum(site_bytes(family, site) for site in sites) // wide
    return cfg.n_layers * (length * 2 * cfg.n_key_value_heads * cfg.d_head + rows * kept) * wide


def layer_bytes(family: Family) -> int:
    """The weights of one layer."""
    cfg = family.cfg
    heads = (2 * cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head
    return (cfg.d_model * (heads + 2) + mlp_weights(cfg, read=True)) * family.dtype.itemsize


def pass_bytes(family: Family, rows: int) -> int:
    """What a pass over packed prompts holds besides what is kept of it: its own keys and values, queries, attention's output of
    this layer and the one before, and the projections and temporaries of a block."""
    cfg, heads = family.cfg, family.cfg.n_heads * family.cfg.d_head
    keys = cfg.n_layers * 2 * cfg.n_key_value_heads * cfg.d_head * family.dtype.itemsize
    row = keys + 3 * heads * family.dtype.itemsize + (cfg.d_model + 2 * cfg.d_head) * family.resid_dtype.itemsize
    block = min(rows, family.sizes.row_block)
    return rows * row + block_bytes(family, block) + block * _projected(family)


def graph_bytes(family: Family, rows: int) -> int:
    """What a captured pass of so many rows holds besides its buffers and results, about: the rows, the temporaries of a block,
    and queries and attention's output of a layer."""
    heads = family.cfg.n_heads * family.cfg.d_head * family.dtype.itemsize
    return rows * row_bytes(family) + block_bytes(family, min(rows, family.sizes.row_block)) + 2 * rows * heads


def _projected(family: Family) -> int:
    """A row's query, key and value of one layer."""
    return (family.cfg.n_heads + 2 * family.cfg.n_key_value_heads) * family.cfg.d_head * family.dtype.itemsize


def senders_bytes(family: Family, rows: int, inputs: int) -> int:
    """Temporaries of a block of senders' rows: attention with each of so many inputs replaced."""
    cfg = family.cfg
    z = cfg.n_heads * cfg.d_head * family.dtype.itemsize
    return block_bytes(family, rows) + rows * (2 * _projected(family) + (inputs + 1) * (_projected(family) + z))


def prefix_work(family: Family, length: int) -> Work:
    """Of the beginning that prompts share, computed anew."""
    out = Work()
    step = family.sizes.segment
    for a in range(0, length, step):
        out += prompt_work(family, [(a, min(a + step, length))], keys_only=True)
    return out


def prompt_work(family: Family, sequences: list[tuple[int, int]], *, keys_only: bool = False) -> Work:
    """Of one pass over sequences (start, end) that are packed. keys_only: nothing is read, so the last layer ends at them."""
    cfg, n = family.cfg, sum(b - a for a, b in sequences)
    keys = sum((b - a) * (a + b + 1) / 2 for a, b in sequences)
    layers = cfg.n_layers - keys_only
    row = layer_flop(cfg)
    flop = (n * row.linear + keys * row.per_key) * layers
    return Work(n * layers, flop, layer_bytes(family) * layers * math.ceil(n / family.sizes.row_block))


def variant_work(
    family: Family, variants: Variants, lengths: Tensor, moves: Tensor, reads: Tensor, columns: int | None
) -> Work:
    """Of one pass of the staircase over N variants. lengths [N]: their rows; moves [N]: which join by a product with W_O;
    reads [N]: rows that are read; columns: logits of them."""
    layer, stage, first = variants.layer, variants.stage, variants.first
    cfg, last, row = family.cfg, family.cfg.n_layers - 1, layer_flop(family.cfg)
    above = last - layer
    with_attention = (above - (stage > Stage.PRE).long()).clamp(min=0)  # whole layers below the last one
    no_mlp = stage > (Stage.PRE if cfg.parallel else Stage.MID)  # in the layer where the variant joins
    with_mlp = (above - no_mlp.long()).clamp(min=0)
    attend = (layer < last) | (stage == Stage.PRE)  # in the last layer: keys of all rows, the rest of the row read
    top = ~((layer == last) & no_mlp) * reads  # rows through the last MLP
    keys = (lengths * first + lengths * (lengths + 1) / 2).double()
    joined = torch.where(layer < last, lengths, reads) * moves
    flop = (lengths * with_mlp + top).double() * row.mlp + joined.double() * row.attn_out
    flop += lengths.double() * with_attention * (row.qkv + row.attn_out) + row.per_key * keys * with_attention
    top_row = row.qkv - row.keys_values + row.attn_out + row.per_key * (first + lengths)
    flop += attend * (lengths.double() * row.keys_values + reads * top_row) + reads * logits_flop(cfg, columns)
    rows = torch.bincount(layer, lengths.double(), cfg.n_layers).cumsum(0)[:last]
    at_once = family.sizes.row_block
    blocks = int((rows / at_once).ceil().sum()) + math.ceil(len(layer) / at_once)
    unembedding = cfg.d_model * family.dtype.itemsize * (cfg.d_vocab if columns is None else columns)
    return Work(float((lengths * with_mlp + top).sum()), float(flop.sum()), blocks * layer_bytes(family) + unembedding)


def cut(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Consecutive ranges whose sizes add up to at most `limit` each (a single item may exceed it)."""
    upto = [0, *accumulate(sizes)]
    return cut_where(len(sizes), lambda a, b: upto[b] - upto[a] <= limit)


def cut_where(n: int, fits: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Consecutive ranges of n items, each as long as it fits (a single item need not)."""
    out, start = [], 0
    for i in range(1, n):
        if not fits(start, i + 1):
            out.append((start, i))
            start = i
    return [*out, (start, n)] if n else []

"""Texts run once, their activations at hand at every position: what the analyses of sources and of flow read.

The prompts of one example's steps are beginnings of one text, so that one pass of it serves all its steps; the few-shot
block before it is computed once for all examples. Nothing of size T x T is held: attention is given for the rows asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.cot.task.other_words import OtherWord, OtherWords
from pycotmech.cot.task.tokens import Encoder
from pycotmech.cot.tools.cells import Cell, Cells
from pycotmech.cot.tools.cost import Cost, Workload, rows_cost
from pycotmech.engine import planner
from pycotmech.engine.ablated import replacing
from pycotmech.engine.bases import common_prefix
from pycotmech.lens.readout import LogitReadout
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family
from pycotmech.model.run import Packed, forward_packed

if TYPE_CHECKING:
    from pycotmech.cot.task.examples import Examples
    from pycotmech.model import Model

SEGMENTS = ("few_shot", "question", "generated")
SOURCES = (*SEGMENTS, "first", "itself")
"""Where attention of the read position goes: the three parts of the prompt, without the first token (where heads rest) and
without the read position itself, which have entries of their own. Every position is in exactly one."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked of one prompt, read at its last token.

    tokens [T]; answer, wrong: token ids of the next word and of the counterfactual's; corrupted [T]: the counterfactual.
    segments: parts of the prompt; what is in none counts as "first" (position 0) or "question".
    occurrences: where the answer's word occurs, as slices of positions, few-shot block included.
    others: the other words of the question that stand in the prompt.
    """

    tokens: Tensor = field(repr=False)
    answer: int
    wrong: int
    corrupted: Tensor | None = field(default=None, repr=False)
    segments: Mapping[str, slice] = field(default_factory=dict)
    occurrences: tuple[slice, ...] = ()
    others: tuple[OtherWord, ...] = ()

    @property
    def competing(self) -> tuple[int, ...]:
        """The first tokens of the words of the prompt that could stand in the answer's place."""
        return tuple(o.token for o in self.others if o.token is not None)

    @property
    def read(self) -> int:
        return len(self.tokens) - 1

    def labels(self) -> NDArray[np.int64]:
        """The source of each position, as a number in `SOURCES`: [T]."""
        out = np.full(len(self.tokens), SOURCES.index("question"))
        for name, where in self.segments.items():
            out[where] = SOURCES.index(name)
        out[0] = SOURCES.index("first")
        out[self.read] = SOURCES.index("itself")
        return out

    def segment_of(self, position: int) -> str:
        """ "few_shot", "question" or "generated", whatever else the position is."""
        for name, where in self.segments.items():
            if where.start <= position < where.stop:
                return name
        return "few_shot" if position == 0 and "few_shot" in self.segments else "question"

    def holds_answer(self, position: int) -> bool:
        """Whether the answer's word is there (any of its tokens)."""
        return any(span.start <= position < span.stop for span in self.occurrences)


def prompt_of(cell: Cell, few_shot: Sequence[slice] = (), others: Sequence[OtherWord] = ()) -> Prompt:
    """The clean prompt of a cell. few_shot: where the answer's word occurs in the shots. others: the question's other words."""
    step = cell.step
    spans = sorted((*few_shot, *step.occurrences), key=lambda s: s.start)
    return Prompt(step.clean, step.answer, step.wrong, step.corrupted, step.segments, tuple(spans), tuple(others))


class Shots:
    """Finds words in the few-shot block, in any number and case. Without a tokenizer nothing is found."""

    def __init__(self, examples: Examples, tokenizer) -> None:
        self.text, self.encoded = examples.few_shot, None
        if tokenizer is not None and self.text:
            encoded = Encoder(tokenizer, examples.bos)(self.text)
            shared = examples.shared_ids.tolist()
            same = next((i for i, (a, b) in enumerate(zip(encoded.ids, shared)) if a != b), min(len(encoded.ids), len(shared)))
            self.encoded, self.same = encoded, same

    def find(self, word: str) -> list[slice]:
        """Positions of a word, as in the vocabulary, and of its plural."""
        if self.encoded is None:
            return []
        places = re.finditer(rf"\b{re.escape(word)}(?:e?s)?\b", self.text, re.IGNORECASE)
        spans = [self.encoded.word(m.start(), m.end()) for m in places]
        return [span for span in spans if span.stop <= self.same]


def by_example(cells: Cells, tokenizer) -> list[list[tuple[Cell, Prompt]]]:
    """The cells that count with their prompts, grouped by example; examples without any are left out."""
    shots, others = Shots(cells.examples, tokenizer), OtherWords(cells.examples, tokenizer)
    groups: dict[int, list[tuple[Cell, Prompt]]] = {}
    for cell in cells:
        prompt = prompt_of(cell, shots.find(cell.step.replaced[0]), others.of(cell.example, cell.step))
        groups.setdefault(cell.e, []).append((cell, prompt))
    return list(groups.values())


def texts_of(groups: Sequence[Sequence[tuple[Cell, Prompt]]]) -> tuple[list[Tensor], int]:
    """The text of each group, its longest prompt, and the first position at which any prompt is read."""
    texts = [max((prompt.tokens for _, prompt in group), key=len) for group in groups]
    return texts, min(prompt.read for group in groups for _, prompt in group)


class TextActivations:
    """One text, run once. Positions count from its front; a shared beginning is held once for all texts that have it."""

    def __init__(self, family: Family, tokens: Tensor, past: Packed | None, own: Packed, number: int) -> None:
        self.family, self.tokens = family, tokens
        self._past, self._own = past, own
        self.shared = 0 if past is None else past.offsets[-1]
        self._rows = slice(own.offsets[number], own.offsets[number + 1])

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, site: str, l: int, positions: Sequence[int]) -> Tensor:
        """A site's activations [n, ...]. Where the shared beginning was not asked for, positions must lie after it."""
        P, first, past = self.shared, self._rows.start, self._past
        if past is None or all(p >= P for p in positions):
            return self._own.sites[site][l][[first + p - P for p in positions]]
        parts = [past.sites[site][l, p] if p < P else self._own.sites[site][l, first + p - P] for p in positions]
        return torch.stack(parts)

    def at_layers(self, site: str, positions: Sequence[int]) -> Tensor:
        """The same in all layers [L, n, ...]."""
        return torch.stack([self.at(site, l, positions) for l in range(self.family.cfg.n_layers)])

    def everywhere(self, site: str, l: int) -> Tensor:
        """A site's activations at all positions [T, ...]."""
        own = self._own.sites[site][l, self._rows]
        return own if self._past is None else torch.cat((self._past.sites[site][l], own))

    def keys(self, l: int) -> Tensor:
        """[T, Hkv, D], after the rotary embedding."""
        own = self._own.k[l, self._rows]
        return own if self._past is None else torch.cat((self._past.k[l], own))

    def values(self, l: int) -> Tensor:
        """[T, Hkv, D]."""
        own = self._own.v[l, self._rows]
        return own if self._past is None else torch.cat((self._past.v[l], own))

    def final(self, positions: Sequence[int]) -> Tensor:
        """resid_post of the last layer [n, d]; positions after the shared beginning."""
        return self._own.resid_final[[self._rows.start + p - self.shared for p in positions]]

    def queries(self, l: int, positions: Sequence[int]) -> Tensor:
        """[n, H, D], after the rotary embedding."""
        return rotated(self.family, l, self.at("q", l, positions), positions)

    def pattern(self, l: int, positions: Sequence[int]) -> Tensor:
        """Attention weights of these rows [n, H, T], 0 after each row."""
        return self.family.pattern(l, self.queries(l, positions), self.keys(l), positions)


def rotated(family: Family, l: int, heads: Tensor, positions: Sequence[int], *, keys: bool = False) -> Tensor:
    """Queries [n, H, D], or keys [n, Hkv, D], with the rotary embedding of their positions."""
    angles, heads = family.rotary(torch.tensor(list(positions), device=heads.device)), heads.clone()
    if keys:
        family.rotate(l, angles, None, keys=(heads,))
    else:
        family.rotate(l, angles, None, heads)
    return heads


def text_activations(
    model: Model,
    texts: Sequence[Tensor],
    sites: Sequence[str],
    *,
    first: int | None = None,
    whole: bool = False,
    keep: Tensor | None = None,
    memory_gb: float | None = None,
) -> Iterator[list[tuple[int, TextActivations]]]:
    """Runs texts and gives their activations in batches that fit the memory: lists of (number of the text, its activations).

    sites: what to keep ("q" for attention rows). first: the first position whose sites or final residual are looked at;
    nothing from there on counts as shared. None: the first at which texts differ. whole: keep the sites of the shared
    beginning too.
    keep: bool [L, H], the only heads left in the run: z of the others is replaced by its mean over all positions of all texts
    but the first. At the first token it is the mean over first tokens: its own z where all texts begin alike.
    Cost: the tokens that all texts begin with once, if the model does not hold their keys and values (`model.prefixes`; not
    used with whole or keep), then each text's own; twice with keep. memory_gb: default half of what is free.
    """
    family = model.family
    P = min(common_prefix(texts), min(map(len, texts)) - 1) if len(texts) > 1 or first is not None else 0
    P = P if first is None else min(P, first)
    fill = None if keep is None or bool(keep.all()) else _mean_z(family, texts, P)

    def edit(lengths: Sequence[int], start: int):
        if fill is None:
            return None
        roles = torch.cat([(torch.arange(start, start + n) > 0).long() for n in lengths]).to(family.device)
        return replacing(~keep, fill, roles)  # type: ignore[operator]

    room = planner.memory_budget(memory_gb, *model.family.devices)
    past = None
    if P and (whole or fill is not None):
        past = forward_packed(family, [texts[0][:P]], sites=sites if whole else (), edit_z=edit([P], 0))
    elif P:
        kept_keys = model.prefixes.key_values(texts[0][:P], room)
        assert kept_keys is not None
        past = Packed([0, P], kept_keys.k, kept_keys.v, {}, kept_keys.k.new_empty(0))
    keys = None if past is None else past.key_values(0, None)
    budget = room // 2
    sizes = [planner.prompt_bytes(family, len(t), len(t) - P, sites) for t in texts]
    for a, b in planner.cut(sizes, budget):
        own = [t[P:] for t in texts[a:b]]
        lengths = [len(t) for t in own]
        rows = torch.arange(sum(lengths))
        packed = forward_packed(family, own, keys, sites=sites, read=rows, edit_z=edit(lengths, P))
        yield [(i, TextActivations(family, texts[i], past, packed, i - a)) for i in range(a, b)]


def text_activations_cost(cfg: ModelConfig, workload: Workload, sites: int, *, whole: bool = False, held: float = 0.0) -> Cost:
    """Of `text_activations`, with this many sites kept; held: bytes beyond the activations.

    Where no site of the shared beginning is kept, its last layer ends with keys and values.
    """
    shared = workload.shared * (1.0 if whole else 1 - 1 / cfg.n_layers)
    rows = shared + workload.texts
    width = sites * max(cfg.d_model, cfg.n_heads * cfg.d_head) + 2 * cfg.n_key_value_heads * cfg.d_head
    return rows_cost(cfg, rows, forwards=workload.examples, memory=held + 4.0 * cfg.n_layers * rows * width)


def _mean_z(family: Family, texts: Sequence[Tensor], P: int) -> Tensor:
    """Mean z of the first token, and of all others: [L, 2, H, D]. The shared beginning counts once for each text."""
    past = forward_packed(family, [texts[0][:P]], sites=("z",)) if P else None
    own = forward_packed(family, [t[P:] for t in texts], None if past is None else past.key_values(0, None), sites=("z",))
    z = own.sites["z"].to(family.resid_dtype)
    shared = z[:, :0] if past is None else past.sites["z"].to(family.resid_dtype)
    firsts = shared[:, 0] if P else z[:, own.offsets[:-1]].mean(1)
    total = z.sum(1) + len(texts) * shared.sum(1) - len(texts) * firsts
    return torch.stack((firsts, total / (sum(map(len, texts)) - len(texts))), 1)


def head_mask(cfg: ModelConfig, heads: Sequence[tuple[int, int]] | Tensor, *, argument: str) -> Tensor:
    """Heads as bool [L, H]. Raises ValueError naming the argument."""
    shape = (cfg.n_layers, cfg.n_heads)
    if isinstance(heads, Tensor) and heads.dtype == torch.bool:
        if tuple(heads.shape) != shape:
            raise ValueError(f"{argument}: got bool {list(heads.shape)}; expected {list(shape)}")
        return heads.cpu()
    mask = torch.zeros(shape, dtype=torch.bool)
    for pair in heads:
        l, h = (int(i) for i in pair)
        if not (0 <= l < shape[0] and 0 <= h < shape[1]):
            raise ValueError(f"{argument}: no head {h} in layer {l}; the model has {shape[0]} layers x {shape[1]} heads")
        mask[l, h] = True
    return mask


# ---- what heads write ----------------------------------------------------------------------------------------------


@torch.no_grad()
def head_outputs(family: Family, l: int, z: Tensor) -> Tensor:
    """z [n, H, D] -> what each head adds to the residual stream [n, H, d], the projection's bias left out."""
    return family.head_out(l, z)


def token_logits(family: Family, x: Tensor, tokens: Sequence[int]) -> Tensor:
    """Logits of a few tokens from residual rows [n, d], final norm included: [n, len(tokens)]."""
    with torch.no_grad():
        return family.logits(x, torch.tensor(list(tokens), device=x.device))


@torch.no_grad()
def direct_directions(family: Family, tokens: Sequence[int]) -> Tensor:
    """Directions [n + 1, d] whose product with a vector, divided by the final norm's size, is its share of the logits of
    `tokens`; the last one is of the mean over the vocabulary. NotImplementedError if something is attached to the
    unembedding."""
    rows = family.unembedding_rows(list(tokens)).to(family.resid_dtype)
    return LogitReadout(family).directions(torch.cat((rows, family.unembedding_mean()[None])))


@torch.no_grad()
def final_size(family: Family, x: Tensor) -> Tensor:
    """What the final norm divides residual rows [n, d] by: [n]. ValueError if what is attached to it does otherwise."""
    readout = LogitReadout(family)
    readout.check_norm(x)
    return 1 / readout.factor(x)[:, 0]


@torch.no_grad()
def projected(family: Family, x: Tensor, tokens: Sequence[int], *, rows: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """U(x) = softmax(unembedding of the normed row): (probabilities of `tokens` [n, K], top token [n], its probability [n]).

    x [n, d]. The norm is that of the row itself: U does not depend on how long the row is. Cost: the unembedding of n rows.
    """
    probability = torch.empty(len(x), len(tokens), dtype=family.resid_dtype, device=x.device)
    top = torch.empty(len(x), dtype=torch.long, device=x.device)
    peak = torch.empty(len(x), dtype=family.resid_dtype, device=x.device)
    for a in range(0, len(x), rows):
        logits = family.logits(x[a : a + rows])
        size = logits.logsumexp(-1)
        probability[a : a + rows] = (logits[:, list(tokens)] - size[:, None]).exp()
        largest, top[a : a + rows] = logits.max(-1)
        peak[a : a + rows] = (largest - size).exp()
    return probability, top, peak

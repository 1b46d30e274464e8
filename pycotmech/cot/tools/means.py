"""What ablated heads are replaced by: the mean of z over prompts of the task, position for position by its role.

A mean over positions counted from one end mixes words that have nothing to do with one another as soon as prompts differ in
length (docs/protocol.md, Flaws, F7). Here prompts are matched word by word: the fifth word of the third shot with the fifth
word of the third shot, its first token with the first token. Where sentences are in no fixed order (distractors, shuffled
premises), words of one kind in one part of the prompt are taken together instead.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import LongTensor, Tensor

from pycotmech._words import plural
from pycotmech.cot.task.examples import Example, Examples
from pycotmech.cot.task.make import make_examples
from pycotmech.cot.task.tokens import Encoder
from pycotmech.cot.task.vocabulary import ENTITIES, PROPERTIES, concepts
from pycotmech.display import Described, Facts
from pycotmech.model.arguments import check_common
from pycotmech.model.run import forward_packed

if TYPE_CHECKING:
    from pycotmech.model import Model

_WORD = re.compile(r"\n+|\w+|[^\w\s]+")
_ALIKE = {"an": "a", "are": "is", "true": "<label>", "false": "<label>"}
N_PROMPTS = 8
_SEED_STEP = 7919
"""Between the seeds of reference prompts: any number far from those that users count with."""


def _kinds() -> dict[str, str]:
    words = [*ENTITIES, *PROPERTIES, *(w for o in ("fictional", "false") for part in concepts(o) for w in part)]  # type: ignore[arg-type]
    return {form.lower(): f"<{w.kind}>" for w in words for form in (w.singular, w.plural) if form}


_KINDS = _kinds()


@dataclass(frozen=True, eq=False)
class HeadMeans(Described):
    """Means of z by role. z: [L, G, H, D]. roles: for each example the role of each position of its `full_ids`.

    prompts: M, how many were averaged. by: "word" (each word of the template is a role) or "kind" (words of one kind in one
    part of the prompt are). source: in words.
    """

    z: Tensor = field(repr=False)
    roles: tuple[LongTensor, ...] = field(repr=False)
    prompts: int
    by: str
    source: str

    def described(self) -> Facts:
        L, G, H, D = self.z.shape
        sizes = f"{L} layers, {G} roles, {H} heads, {D} numbers each"
        return Facts("Means of z by role", {"averaged": str(self), "z": sizes, "examples": len(self.roles)})

    def __str__(self) -> str:
        role = "the same word of the template" if self.by == "word" else "words of the same kind in the same part"
        return f"the mean of z over {plural(self.prompts, 'prompt')} at {role}; {self.source}"


def head_means(
    model: Model,
    examples: Examples,
    *,
    over: Examples | Sequence[Examples] | None = None,
    n: int = N_PROMPTS,
    seed: int = 0,
) -> HeadMeans:
    """Means of z by role, to put in the place of ablated heads at every position of `examples`, few-shot block included.

    over: what is averaged: examples of `make_examples`, every one of them, with their own few-shot blocks. None: n prompts
        made like `examples`, each with other words and a few-shot block of its own. Examples that share the few-shot block
        of `examples` leave the heads there as they are.
    Raises ValueError naming the argument if the model has no tokenizer, or the prompts do not have the roles needed.
    Cost: one forward pass of each prompt, a few-shot block once; about 6 tokenisations for each prompt made.
    """
    check_common(model, seed=seed)
    if model.tokenizer is None:
        raise ValueError("mean: the model has no tokenizer, which is needed to find words; expected kind='zero'")
    if over is None:
        if n < 1:
            raise ValueError(f"n: got {n}; expected at least one prompt")
        groups = _made(model, examples, n, seed)
        blocks = ", each with its own few-shot block" if examples.shots else ""
        source = f"prompts made like the examples with other words{blocks} (seed {seed})"
    else:
        groups = [over] if isinstance(over, Examples) else list(over)
        if not groups or not all(isinstance(g, Examples) and len(g) for g in groups):
            raise TypeError("mean: expected what pcm.cot.make_examples gives, or a list of such, with at least one example")
        kinds = " and ".join(dict.fromkeys(g.ontology for g in groups))
        source = f"given examples of the {kinds} ontology"
    words = [_Words(g, model) for g in [examples, *groups]]
    sequence = words[0].classes(0)
    by_word = all(w.classes(i) == sequence for w in words for i in range(len(w.examples)))
    keys = [words[0].keys(i, by_word) for i in range(len(examples))]
    number: dict[Hashable, int] = {}
    for key in keys:
        for k in key:
            number.setdefault(k, len(number))
    roles = tuple(torch.tensor([number[k] for k in key]) for key in keys)
    z, prompts = _averaged(model, words[1:], by_word, number)
    return HeadMeans(z, roles, prompts, "word" if by_word else "kind", source)  # type: ignore[arg-type]


def _made(model: Model, examples: Examples, n: int, seed: int) -> list[Examples]:
    names = ("hops", "shots", "ontology", "style", "order", "distractors", "competing", "bos", "template", "think")
    like = {k: getattr(examples, k) for k in names}
    made: list[Examples] = []
    at = _SEED_STEP * (seed + 1)
    while len(made) < n:
        at += 1
        if at != examples.seed:
            made.append(make_examples(1, tokenizer=model.tokenizer, seed=at, **like))
    return made


class _Words:
    """The words of examples and which tokens make them up."""

    def __init__(self, examples: Examples, model: Model) -> None:
        self.examples = examples
        encoder = Encoder(model.tokenizer, examples.bos)
        self.encoded = encoder.many([example.full_text for example in examples])
        for example, encoded in zip(examples, self.encoded):
            if encoded.ids != example.full_ids.tolist():
                raise ValueError(
                    f"examples: the model's tokenizer cuts example {example.index} otherwise than its token ids; "
                    "expected examples made with this tokenizer"
                )

    def classes(self, i: int) -> list[str]:
        """What each word of an example is: the kind of a word of the task, else the word itself, however it is inflected."""
        return [_class(m.group()) for m in _WORD.finditer(self.examples[i].full_text)]

    def keys(self, i: int, by_word: bool) -> list[Hashable]:
        """For each position its role: which word (or what kind of word, where), which of its tokens, of how many."""
        example, encoded = self.examples[i], self.encoded[i]
        found = list(_WORD.finditer(example.full_text))
        stops = torch.tensor([m.end() for m in found])
        # A token belongs to the word in which its last character lies; a separate space to the word after it.
        ends = torch.tensor(encoded.stops)
        at = torch.searchsorted(stops, ends).clamp(max=len(found) - 1).tolist()
        counts = torch.bincount(torch.tensor(at), minlength=len(found)).tolist()
        keys: list[Hashable] = ["<bos>"] * encoded.shift
        seen: dict[int, int] = {}
        for p, word in enumerate(at, encoded.shift):
            piece = seen[word] = seen.get(word, -1) + 1
            place = word if by_word else (_part(example, p), _class(found[word].group()))
            keys.append((place, piece, counts[word]))
        return keys


def _class(word: str) -> str:
    low = word.lower()
    return _KINDS.get(low) or _ALIKE.get(low, low)


def _part(example: Example, position: int) -> str:
    return next(name for name, s in example.segments.items() if s.start <= position < s.stop)


@torch.no_grad()
def _averaged(model: Model, words: list[_Words], by_word: bool, number: dict[Hashable, int]) -> tuple[Tensor, int]:
    """Mean z [L, G, H, D] for each role of `number`, and over how many prompts."""
    cfg, family = model.cfg, model.family
    wide = torch.float64 if family.dtype == torch.float64 else torch.float32
    total = torch.zeros(cfg.n_layers, len(number), cfg.n_heads, cfg.d_head, dtype=wide, device=family.device)
    count = torch.zeros(len(number), device=family.device, dtype=wide)
    # A word of j of n tokens takes the matching token of the same word where that is cut into m.
    wanted: dict[Hashable, list[tuple[int, int, int]]] = {}
    for key, g in number.items():
        if key != "<bos>":
            place, j, n = key  # type: ignore[misc]
            wanted.setdefault(place, []).append((g, j, n))
    prompts = 0
    for group in words:
        shared = len(group.examples.shared_ids)
        prefix = group.examples[0].full_ids[:shared]
        packed = forward_packed(family, [prefix], sites=("z",)) if shared else None
        past = packed.key_values(0, None) if packed else None
        for i, example in enumerate(group.examples):
            z = forward_packed(family, [example.full_ids[shared:]], past, sites=("z",)).sites["z"]
            z = z if packed is None else torch.cat((packed.sites["z"], z), 1)
            roles, positions = _matches(group.keys(i, by_word), wanted, number.get("<bos>"))
            where = torch.tensor(roles, device=family.device)
            total.index_add_(1, where, z[:, positions].to(wide))
            count.index_add_(0, where, torch.ones(len(where), dtype=wide, device=family.device))
            prompts += 1
    if bool((count == 0).any()):
        missing = next(k for k, g in number.items() if count[g] == 0)
        raise ValueError(
            f"mean: no prompt to average over has a word for the role {missing}; expected prompts like the examples"
        )
    return total / count[:, None, None], prompts


def _matches(
    keys: list[Hashable], wanted: dict[Hashable, list[tuple[int, int, int]]], bos: int | None
) -> tuple[list[int], list[int]]:
    """Pairs (role, position): which positions of a prompt are averaged into which role."""
    roles, positions = [], []
    for p, key in enumerate(keys):
        if key == "<bos>":
            if bos is not None:
                roles.append(bos), positions.append(p)
            continue
        place, i, m = key  # type: ignore[misc]
        for g, j, n in wanted.get(place, ()):
            # The last token of a word is where the whole word is known: last to last, first to first, the rest between.
            if i == (m - 1 if n == 1 else round(j * (m - 1) / (n - 1))):
                roles.append(g), positions.append(p)
    return roles, positions

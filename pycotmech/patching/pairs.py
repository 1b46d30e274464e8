"""Clean and corrupted prompts: whether they align, where they differ, which tokens answer them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pycotmech.display import Described
from pycotmech.model.arguments import check_model
from pycotmech.model.prompts import Tokens, listed, resolve_positions, token_ids, unpacked

if TYPE_CHECKING:
    from pycotmech.model import Model


@dataclass(frozen=True)
class Pair:
    """Two aligned prompts, checked. first: the first position at which they differ; read: where the metric is read."""

    clean: Tensor  # [T]
    corrupted: Tensor  # [T]
    first: int
    read: int
    answer: int | None
    wrong: int | None


@dataclass(frozen=True)
class PairReport(Described):
    """How two prompts compare. `aligned`: equal length, so that position p means the same place in both."""

    aligned: bool
    lengths: tuple[int, int]
    differs: list[int]
    """Positions (of the shorter prompt's range) whose tokens differ."""
    text: str

    def __str__(self) -> str:
        return self.text


def aligned(clean: Tensor, corrupted: Tensor) -> Pair:
    """A pair of token ids [T] that are known to be aligned and to differ, read at their end."""
    return Pair(clean, corrupted, int((clean != corrupted).nonzero()[0]), len(clean) - 1, None, None)


def check_pair(clean: Tokens, corrupted: Tokens, *, model: Model | None = None, tokenizer=None) -> PairReport:
    """Shows where two prompts differ and whether they align token for token.

    clean, corrupted: token ids [T], or strings with `model` or `tokenizer`. Nothing is run.
    """
    if model is not None:
        check_model(model)
    tokenizer = tokenizer or (model.tokenizer if model is not None else None)

    def ids(prompt: Tokens, argument: str) -> list[int]:
        if model is not None:
            return model.to_tokens(prompt, argument=argument).tolist()
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"{argument}: got a string; give model= or tokenizer= too, or token ids")
            return tokenizer(prompt)["input_ids"]
        return token_ids(unpacked(prompt, argument=argument), argument=argument).tolist()

    a, b = ids(clean, "clean"), ids(corrupted, "corrupted")
    differs = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    aligned = len(a) == len(b)

    def show(token: int) -> str:
        return repr(tokenizer.decode([token])) if tokenizer is not None else str(token)

    lines = [
        f"aligned: {len(a)} tokens each" if aligned else f"not aligned: {len(a)} tokens against {len(b)}",
        f"{len(differs)} positions differ" + (f", the first at {differs[0]}" if differs else ": the prompts are the same"),
    ]
    lines += [f"  {i:>5}  {show(a[i])} -> {show(b[i])}" for i in differs[:20]]
    if len(differs) > 20:
        lines.append(f"  ... and {len(differs) - 20} more")
    if not aligned:
        lines.append("replace words by words of equally many tokens: patching needs position p to be the same place in both")
    return PairReport(aligned, (len(a), len(b)), differs, "\n".join(lines))


def make_pairs(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    answer: int | str | Sequence[int | str] | None,
    wrong: int | str | Sequence[int | str] | None,
    read: int | Sequence[int],
) -> tuple[list[Pair], bool]:
    """Checked pairs, and whether one pair was given rather than a list. Raises ValueError before anything is run."""
    (cleans, single), (corrupteds, other) = listed(clean, argument="clean"), listed(corrupted, argument="corrupted")
    if single != other:
        raise ValueError("clean, corrupted: one is a single prompt, the other a list; expected two prompts or two lists")
    if len(cleans) != len(corrupteds) or not cleans:
        raise ValueError(
            f"clean, corrupted: {len(cleans)} prompts against {len(corrupteds)}; expected equally many, at least one"
        )
    n = len(cleans)
    answers, wrongs, reads = _each(answer, n, "answer"), _each(wrong, n, "wrong"), _each(read, n, "read")
    return [_pair(model, *parts) for parts in zip(cleans, corrupteds, answers, wrongs, reads, range(n), strict=True)], single


def targets_of(pair: Pair, positions: Sequence[int] | None) -> list[int]:
    """The positions at which an edit can change what is read: from the first difference to where the metric is read."""
    if positions is None:
        return list(range(pair.first, pair.read + 1))
    wanted = sorted(set(resolve_positions(positions, len(pair.clean))))
    useful = [p for p in wanted if pair.first <= p <= pair.read]
    if not useful:
        raise ValueError(
            f"positions: {list(positions)} reach nothing that is read; the prompts first differ at position {pair.first} "
            f"and the metric is read at {pair.read}; expected positions in {pair.first}..{pair.read}"
        )
    return useful


def _each(value: Any, n: int, argument: str) -> list:
    """One value for each of n examples; the same for all where one was given."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (Integral, str)):
        return [value] * n
    if not isinstance(value, Iterable) or isinstance(value, Mapping | Set | bytes):
        raise TypeError(f"{argument}: got {value!r} of type {type(value).__name__}; expected one, or one per example")
    values = list(value)
    if len(values) != n:
        raise ValueError(f"{argument}: {len(values)} given for {n} examples; expected one, or one per example")
    if None in values:
        raise ValueError(f"{argument}[{values.index(None)}]: got None; expected one for each of the {n} examples")
    return values


def _pair(model: Model, clean: Tokens, corrupted: Tokens, answer, wrong, read: int, i: int) -> Pair:
    a, b = model.to_tokens(clean, argument=f"clean[{i}]"), model.to_tokens(corrupted, argument=f"corrupted[{i}]")
    if len(a) != len(b):
        raise ValueError(
            f"clean[{i}] has {len(a)} tokens, corrupted[{i}] has {len(b)}; expected equal lengths "
            "(pcm.check_pair shows where they part)"
        )
    differs = (a != b).nonzero().flatten()
    if len(differs) == 0:
        raise ValueError(f"clean[{i}] and corrupted[{i}] are the same {len(a)} tokens; expected prompts that differ")
    where = resolve_positions(read, len(a), argument="read")[0]
    first = int(differs[0])
    if first > where:
        raise ValueError(
            f"read: position {where} comes before the first difference, {first}, so nothing can change there; expected "
            f"{first}..{len(a) - 1}"
        )
    answer_id, wrong_id = (
        None if given is None else answer_token(model, clean, given, where, a, f"{name}[{i}]")
        for given, name in ((answer, "answer"), (wrong, "wrong"))
    )
    if answer_id is not None and answer_id == wrong_id:
        raise ValueError(
            f"answer[{i}] and wrong[{i}] ({answer!r}, {wrong!r}) begin with the same token {answer_id}; "
            "expected words that differ in their first token in context"
        )
    return Pair(a, b, first, where, answer_id, wrong_id)


def answer_token(model: Model, prompt: Tokens, answer: int | str | Tensor, read: int, tokens: Tensor, argument: str) -> int:
    """A token id; of a string its first token after the prompt, where tokenizers differ from a word on its own.

    Raises ValueError, naming `argument`, for a string that has no such token, or whose token is the tokenizer's unknown one.
    """
    given: Any = answer.item() if isinstance(answer, (Tensor, np.ndarray)) and answer.ndim == 0 else answer
    if isinstance(given, Integral) and not isinstance(given, bool):
        V, token = model.cfg.d_vocab, int(given)
        if not 0 <= token < V:
            raise ValueError(f"{argument}: token id {token} is outside the vocabulary of {V} tokens; expected 0..{V - 1}")
        return token
    if not isinstance(answer, str) or not answer:
        raise ValueError(f"{argument}: expected a token id or a word, got {answer!r}")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{argument}: got the string {answer!r}, but the model has no tokenizer; expected a token id")
    text = prompt if isinstance(prompt, str) and read == len(tokens) - 1 else tokenizer.decode(tokens[: read + 1])
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    spaced = answer[0].isalnum() and not text[-1:].isspace()  # a word after a word comes with a space
    unknown = False
    for candidate in (" " + answer, answer) if spaced else (answer,):
        after = tokenizer(text + candidate, add_special_tokens=False)["input_ids"]
        if after[: len(before)] == before and len(after) > len(before):
            token = after[len(before)]
            if token != getattr(tokenizer, "unk_token_id", None) or answer == str(tokenizer.unk_token):
                return token
            unknown = True
    if unknown:
        raise ValueError(
            f"{argument}: the tokenizer does not know {answer!r}, which becomes {str(tokenizer.unk_token)!r}; "
            "expected a word of its vocabulary, or a token id"
        )
    raise ValueError(
        f"{argument}: {answer!r} merges with the end of the prompt, so it has no first token of its own; "
        "expected a prompt that does not end in a space, or a token id"
    )

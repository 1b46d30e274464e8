"""How a tokenizer splits the words of the task, and which words may replace one another.

A counterfactual exchanges one word and must keep every other token in its place. That is possible between words that have
the same number of tokens in every written form that occurs: after a space, after a newline, capitalised, plural.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pycotmech.cot.task.chat import Chat
from pycotmech.cot.task.vocabulary import Word
from pycotmech.cot.task.wording import Order, Style

Lead = Literal["space", "line", "start", "message", "turn"]


class Form(NamedTuple):
    """A written form: what precedes the word (a space, a newline, nothing, or what a chat template writes before the user's
    message or the assistant's turn), its number and its case."""

    lead: Lead = "space"
    plural: bool = False
    capital: bool = False


class Cut(NamedTuple):
    """Number of tokens of a word in one form, and the first of them."""

    count: int
    first: int


Profile = dict[Form, Cut]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text with the characters they cover. `shift` is 1 after a BOS that the text does not have, else 0.
    `begin` is 1 after any BOS, be it written in the text or not."""

    ids: list[int]
    starts: list[int]
    stops: list[int]
    shift: int

    text: str
    begin: int

    def at_or_after(self, start: int) -> int:
        """The position of the first token that holds something at or after character `start`."""
        return bisect_right(self.stops, start) + self.shift

    def word(self, start: int, stop: int) -> slice:
        """The positions of the word at [start, stop), with the space before it. Most tokenizers make it part of the
        word; where it is a separate token, a prompt that ends before the space ends before that token."""
        return slice(self.at_or_after(before(self.text, start)), bisect_left(self.starts, stop) + self.shift)

    def isolated(self, start: int, stop: int) -> bool:
        """Whether the tokens of the word hold nothing of the words around it."""
        span = self.word(start, stop)
        if span.start >= span.stop:
            return False
        first, last = span.start - self.shift, span.stop - 1 - self.shift
        return self.text[self.starts[first] : start].strip() == "" and self.stops[last] == stop


def before(text: str, start: int) -> int:
    """Where the text before a word ends, without the space between them."""
    return start - 1 if start and text[start - 1] == " " else start


class Encoder:
    """A tokenizer with the decision about BOS taken: text in, ids with characters out.

    Special tokens are never added by the tokenizer itself (some append an EOS too); a BOS is added here, unless the text
    begins with one, as texts of a chat template do. chat: what a template writes around prompts, if one is used.
    """

    def __init__(self, tokenizer: Any, bos: bool | None, chat: Chat | None = None):
        if not (callable(tokenizer) and hasattr(tokenizer, "bos_token_id")):
            raise TypeError(f"tokenizer must be a Hugging Face tokenizer, got {type(tokenizer).__name__}")
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(
                f"tokenizer must be a fast one (it says which characters a token covers), got {type(tokenizer).__name__}"
            )
        if bos not in (None, True, False):
            raise TypeError(f"bos must be None, True or False, got {bos!r}")
        self.tokenizer: Any = tokenizer
        begin: int | None = tokenizer.bos_token_id
        if bos and begin is None:
            raise ValueError("bos=True, but the tokenizer has no bos_token")
        if bos is None:
            sample = self.tokenizer("x")["input_ids"]
            bos = begin is not None and len(sample) > 0 and sample[0] == begin
        self.bos: bool = bool(bos)
        self.front: list[int] = [begin] if bos and begin is not None else []
        self.begin_text: str | None = tokenizer.bos_token if self.front else None
        self.unknown: int | None = tokenizer.unk_token_id
        self.chat = chat

    def __call__(self, text: str) -> Encoded:
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[Encoded]:
        if not texts:
            return []
        out = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        encoded = []
        for text, ids, offsets in zip(texts, out["input_ids"], out["offset_mapping"], strict=True):
            front = [] if self.begin_text and text.startswith(self.begin_text) else self.front
            starts, stops = [a for a, _ in offsets], [b for _, b in offsets]
            encoded.append(Encoded([*front, *ids], starts, stops, len(front), text, len(self.front)))
        return encoded


def forms(kind: str, style: Style, order: Order, shots: int, chat: bool = False) -> tuple[Form, ...]:
    """The written forms in which words of a kind can occur in a test item. chat: whether a chat template is around it."""
    if chat and kind == "entity":  # the solution begins the assistant's turn
        plain = forms(kind, style, order, shots)
        return (*(Form("message") if form == Form("start") else form for form in plain), Form("turn"))
    if kind == "property":
        return (Form(),)
    if kind == "entity":
        if style == "paper":
            return (Form(), Form("line"))
        if style == "each":  # its text begins with a word of its own
            return (Form(),)
        if order in ("membership_first", "shuffled"):
            return (Form(), Form("line" if shots else "start"))
        return (Form(),)
    if style == "all":
        return (Form(), Form(plural=True))
    if style != "paper":
        return (Form(),)
    capital = tuple(Form(lead, plural, True) for lead in ("space", "line") for plural in (False, True))
    return (Form(), Form(plural=True), *capital)


# Text before a word, by lead. This and the text after it are what the sentences of the task have there.
_LEFT: dict[str, str] = {"space": "that is ", "line": ":\n", "start": ""}


def _after(kind: str, style: Style, form: Form) -> tuple[str, ...]:
    if kind == "entity" or form.capital:
        return (" is",)
    if style == "paper":
        return (".",)
    if form.plural:
        return (" are", ".", ",")
    return (".", ",") if kind == "property" else (" is", ".", ",")


def profiles(encoder: Encoder, words: Iterable[Word], wanted: Sequence[Form], style: Style) -> dict[Word, Profile]:
    """How each word is cut in each form. A word is left out if it is unknown, is merged with its neighbours, or is cut
    differently depending on the text after it."""
    words = list(words)
    lefts = dict(_LEFT)
    if encoder.chat is not None:
        lefts |= {"message": encoder.chat.front, "turn": encoder.chat.opening + encoder.chat.joint}
    texts, places = [], []
    for word in words:
        for form in wanted:
            written = word.written(plural=form.plural, capital=form.capital)
            for right in _after(word.kind, style, form):
                left = lefts[form.lead]
                texts.append(left + written + right)
                places.append((word, form, len(left), len(left) + len(written)))
    found: dict[Word, Profile] = {word: {} for word in words}
    for encoded, (word, form, start, stop) in zip(encoder.many(texts), places, strict=True):
        if word not in found:
            continue
        pieces = encoded.ids[encoded.word(start, stop)]
        good = encoded.isolated(start, stop) and encoder.unknown not in pieces
        cut = Cut(len(pieces), pieces[0]) if good else None
        if cut is None or found[word].setdefault(form, cut) != cut:
            del found[word]
    return found


def same_length(a: Profile, b: Profile, used: Iterable[Form]) -> bool:
    return all(a[form].count == b[form].count for form in used)


def same_start(a: Profile, b: Profile) -> bool:
    """Whether two words begin with the same token in any form: the first token would not distinguish them."""
    return any(a[form].first == b[form].first for form in a)


def classes(words: Iterable[Word], cuts: dict[Word, Profile], by_article: bool) -> list[list[Word]]:
    """Words grouped by their token counts in all forms (and article), largest group first, ties by first appearance."""
    groups: dict[tuple, list[Word]] = {}
    for word in words:
        if word in cuts:
            key = (word.article if by_article else "", *(cut.count for cut in cuts[word].values()))
            groups.setdefault(key, []).append(word)
    return sorted(groups.values(), key=len, reverse=True)

"""Reads traces as people have them: texts, messages, lines of a file; and finds the tokens of their parts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pycotmech.files.text import parse_json
from pycotmech.traces.checked import is_text
from pycotmech.traces.splitting import Splitter, split

if TYPE_CHECKING:
    from pycotmech.model import Model

OPEN, CLOSE = "<think>", "</think>"

_BOXED = "\\boxed{"
_ANSWERS = (
    re.compile(r"####[ \t]*([^\n]+)"),
    re.compile(
        r"(?i)(?:\banswer\**(?:\s+is\b\s*[:：]?|\s*[:：])|答案(?:\s*(?:就?是|为)\s*[:：]?|\**\s*[:：]))\s*\**\s*"
        r"([^\n]+?)\**(?:\.(?=\s|$)|。|(?=\n|$))"
    ),
)
"""How answers are marked where none is boxed, the surest first; the last such mark counts."""


@dataclass(frozen=True)
class Parts:
    """Ranges of characters of prompt + completion. answer: None if there is none."""

    reasoning: tuple[int, int]
    answer: tuple[int, int] | None


def parse(prompt: str, completion: str, answer: str | None, splitter: Splitter) -> Parts:
    """Where the reasoning and the answer stand. Raises ValueError or TypeError naming `completion` or `answer`."""
    if answer is not None:
        is_text(answer, "answer")
    at = len(prompt)
    tagged = OPEN in completion or prompt.rstrip().endswith(OPEN) or CLOSE in completion
    if not tagged:
        return _untagged(at, completion, answer, splitter)
    begin = completion.find(OPEN) + len(OPEN) if OPEN in completion else 0
    end = completion.find(CLOSE, begin)
    if end < 0:
        where = "" if OPEN in completion else f", and the prompt ends with {OPEN}"
        raise ValueError(
            f"completion: the reasoning has no end, {CLOSE} is missing{where}; expected a trace that was not cut off, with "
            f"{CLOSE} after its reasoning"
        )
    rest = completion[end + len(CLOSE) :]
    if OPEN in rest:
        raise ValueError(
            f"completion: reasons again after its first {CLOSE} ({completion.count(OPEN)} times {OPEN}); expected one block of "
            "reasoning: put what comes before the last one into the prompt"
        )
    found = answer_in(rest, answer)
    if found is None and answer is not None:
        raise ValueError(
            f"answer: {answer[:60]!r} is not in the completion after {CLOSE}; expected the answer as it stands there"
        )
    offset = at + end + len(CLOSE)
    return Parts((at + begin, at + end), None if found is None else (offset + found[0], offset + found[1]))


def _untagged(at: int, completion: str, answer: str | None, splitter: Splitter) -> Parts:
    """The reasoning ends where the sentence of the answer begins."""
    found = answer_in(completion, answer)
    if found is None and answer is not None:
        raise ValueError(f"answer: {answer[:60]!r} is not in the completion; expected the answer as it stands there")
    if found is None:
        return Parts((at, at + len(completion)), None)
    pieces = split(completion[: found[1]], splitter)
    begin = max((a for a, _ in pieces if a <= found[0]), default=0)
    # A splitter that cuts within "3. 5" must not leave the reasoning ending in the answer's own sentence.
    if begin == 0:
        raise ValueError(
            f"completion: the answer {completion[slice(*found)][:60]!r} stands in the first sentence, so there is no reasoning "
            f"before it; expected reasoning, or {OPEN} and {CLOSE} around it"
        )
    return Parts((at, at + begin), (at + found[0], at + found[1]))


def answer_in(text: str, answer: str | None) -> tuple[int, int] | None:
    """Where the answer stands last in a text: a given one (as a word of its own if it does so anywhere), or one that is marked
    as such; None if it does not."""
    if answer is not None:
        bare = is_text(answer, "answer").strip()
        if not bare:
            raise ValueError("answer: got an empty text; expected the answer as it stands in the completion")
        alone = re.compile(r"(?<!\w)" + re.escape(bare) + r"(?!\w)")
        places = [found.start() for found in alone.finditer(text)] or [text.rfind(bare)]
        return None if places[-1] < 0 else (places[-1], places[-1] + len(bare))
    if (boxed := _boxed(text)) is not None:
        return boxed
    for pattern in _ANSWERS:
        found = list(pattern.finditer(text))
        if found:
            a, b = found[-1].span(1)
            return _without_frame(text, a, b)
    return None


def _without_frame(text: str, a: int, b: int) -> tuple[int, int] | None:
    """The range a .. b - 1 of a text without white space around it, and without the dollar signs of a formula; None if nothing
    is left."""
    bare = text[a:b].strip()
    if len(bare) > 2 and bare[0] == bare[-1] == "$" and "$" not in bare[1:-1]:
        bare = bare[1:-1].strip()
    a += text[a:b].find(bare)
    return (a, a + len(bare)) if bare else None


def _boxed(text: str) -> tuple[int, int] | None:
    r"""Where the content of the last \boxed{} stands, which may hold braces itself: \boxed{\frac{1}{2}}. None if there is none
    that closes and holds something. Cost: one pass over the text."""
    end = len(text)
    while (at := text.rfind(_BOXED, 0, end)) >= 0:
        begin, depth = at + len(_BOXED), 1
        for i in range(begin, end):
            depth += (text[i] == "{") - (text[i] == "}")
            if not depth:
                bare = text[begin:i].strip()
                if bare:
                    begin += text[begin:i].find(bare)
                    return begin, begin + len(bare)
                break
        end = at  # what follows closes nothing that is open before it
    return None


# ---- tokens ------------------------------------------------------------------------------------------------------------


def encoded(model: Model, prompt: str, completion: str, bos: bool | None = None) -> tuple[Tensor, list[tuple[int, int]], str]:
    """The tokens [T] of prompt + completion, the range of characters of each, and the text. A BOS token before the text
    has the range (0, 0).

    bos: whether a text that begins with none gets a BOS; None: as the model's prompts do.
    Raises ValueError naming the model if its tokenizer gives no offsets, `prompt` if it holds no token, `bos` if the tokenizer
    has none.
    """
    is_text(prompt, "prompt")
    is_text(completion, "completion")
    tokenizer, text = model.tokenizer, prompt + completion
    if tokenizer is None:
        raise ValueError("model: has no tokenizer; expected one with it, or a trace made by Trace.from_tokens")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"model: its tokenizer ({type(tokenizer).__name__}) gives no offsets of its tokens; expected a fast tokenizer, or "
            "a trace made by Trace.from_tokens with boundaries in tokens"
        )
    ids = model.to_tokens(text, argument="prompt")
    if bos is not None:
        ids = _with_bos(ids, tokenizer, bos, text)
    found = tokenizer(text, return_offsets_mapping=True)
    theirs, offsets = list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
    ours = ids.tolist()
    if ours[1:] == theirs:
        offsets = [(0, 0), *offsets]
    elif ours == theirs[1:]:
        offsets = offsets[1:]
    elif ours != theirs:
        raise ValueError("model: its tokenizer gives other tokens with offsets than without; expected a trace of from_tokens")
    return torch.as_tensor(ids), offsets, text


def _with_bos(ids: Tensor, tokenizer: Any, bos: bool, text: str) -> Tensor:
    """The tokens with a BOS at the beginning or without; one that the text itself begins with stays."""
    begin = tokenizer.bos_token_id
    if begin is None and bos:
        raise ValueError("bos: got True, but the tokenizer has no BOS; expected None or False")
    if begin is None or text.startswith(tokenizer.bos_token) or bool(ids[0] == begin) == bos:
        return ids
    return torch.cat((torch.tensor([begin]), ids)) if bos else ids[1:]


def token_spans(
    text: str, offsets: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[int]]:
    """The tokens of sentences that follow one another: (start, stop) of those that have any, and which these are.

    ranges: of characters, which cover one another's gaps. A token is in the sentence of its first character that is no white
    space; one of white space only is in the sentence of its first character.
    """
    starts = [a for a, _ in ranges]
    first: list[int | None] = [None] * len(ranges)
    end = 0
    for t, (a, b) in enumerate(offsets):
        piece = text[a:b]
        at = a + len(piece) - len(piece.lstrip()) if piece.strip() else a
        if b <= a or not starts[0] <= at < ranges[-1][1]:
            continue
        i = bisect_right(starts, at) - 1
        if first[i] is None:
            first[i] = t
        end = t + 1
    kept = [i for i, t in enumerate(first) if t is not None]
    if not kept:
        raise ValueError("completion: no token begins in the reasoning; expected sentences before the answer")
    begins: list[int] = [t for t in first if t is not None]
    if begins[0] == 0:
        raise ValueError("prompt: holds no token; expected at least one before the reasoning")
    return list(zip(begins, [*begins[1:], end], strict=True)), kept


def tokens_of(offsets: Sequence[tuple[int, int]], a: int, b: int) -> tuple[int, int]:
    """The first token that reaches into characters a .. b - 1, and the first after all that do."""
    hit = [t for t, (lo, hi) in enumerate(offsets) if lo < b and hi > a]
    return hit[0], hit[-1] + 1


def cue_ids(model: Model, cue: str | Sequence[int] | Tensor) -> Tensor:
    """The tokens of a cue, int64, none for an empty one: of a text without a BOS token, or given as ids, which are not checked.

    Raises ValueError naming `cue` for a text without a tokenizer.
    """
    if isinstance(cue, str):
        if model.tokenizer is None:
            raise ValueError("cue: got a text, but the model has no tokenizer; expected token ids")
        cue = list(model.tokenizer(cue, add_special_tokens=False)["input_ids"])
    return torch.as_tensor(cue, dtype=torch.long) if len(cue) else torch.empty(0, dtype=torch.long)


# ---- messages and files ------------------------------------------------------------------------------------------------


def of_messages(model: Model, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> tuple[str, str]:
    """Prompt and completion of a conversation, in which the model could call `tools` (None: the template is given none).

    Raises TypeError or ValueError naming `messages` or `tools`.
    """
    if tools is not None and (isinstance(tools, str | Mapping) or not isinstance(tools, Sequence)):
        raise TypeError(f"tools: got {type(tools).__name__}; expected a list of functions' descriptions")
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: got {type(messages).__name__}; expected a list of {{'role', 'content'}}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{i}]: got {type(message).__name__}; expected an object with role and content")
        for key in ("content", "reasoning_content", "reasoning"):
            if message.get(key) is not None:
                is_text(message[key], f"messages[{i}].{key}")
    if not messages:
        raise ValueError("messages: the list is empty; expected a question and the model's answer with its reasoning")
    if messages[-1].get("role") != "assistant":
        got = messages[-1].get("role")
        raise ValueError(f"messages: the last one is of {got!r}; expected one of 'assistant', with the reasoning")
    if len(messages) < 2:
        raise ValueError("messages: got only the model's; expected the question before it")
    if model.tokenizer is None or not getattr(model.tokenizer, "chat_template", None):
        raise ValueError("messages: the model has no chat template; expected prompt and completion as texts (Trace.from_text)")
    prompt = _templated(model.tokenizer, list(messages[:-1]), tools)
    last = messages[-1]
    content = last.get("content") or ""
    thought = last.get("reasoning_content") or last.get("reasoning")
    if thought is not None:
        content = f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n{content.lstrip()}"
    if prompt.rstrip().endswith(OPEN) and content.lstrip().startswith(OPEN):  # the template has opened it already
        content = content.lstrip()[len(OPEN) :].removeprefix("\n")
    return prompt, content


def _templated(tokenizer: Any, messages: list[Mapping[str, Any]], tools: Sequence[Any] | None) -> str:
    """Messages by the chat template, up to where the model goes on. Raises ValueError naming `messages` if the template
    refuses them."""
    from jinja2 import TemplateError

    given = {} if tools is None else {"tools": list(tools)}
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
    except (TemplateError, TypeError, KeyError, AttributeError) as error:  # a template may run into anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ValueError(
            f"messages: the model's chat template refuses them ({error}); their roles are {roles}. Give prompt and completion "
            "as texts, or messages that the template takes"
        ) from error


def records(path: str | PathLike, wrong: Callable[[int, str], None] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, object) of a JSON Lines file; empty lines are passed over.

    wrong: called with the number of a line that is no JSON object, and why. None: it is an error.
    Raises FileNotFoundError, or ValueError naming the file and the line.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: there is no file {file}; expected a JSON Lines file of traces")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    # Not splitlines: it also cuts at characters that may occur inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except ValueError as error:
            many = " (a JSON array over many lines is none)" if number == 1 and line.lstrip().startswith("[") else ""
            why = f"no JSON ({error}); expected one object a line{many}"
        else:
            if isinstance(found, dict):
                yield number, found
                continue
            why = f"got {type(found).__name__}; expected an object, one on each line"
        if wrong is None:
            raise ValueError(f"{file}, line {number}: {why}")
        wrong(number, why)

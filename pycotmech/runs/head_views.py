"""What the strongest heads attend to and write in three examples, kept for the report beside the results.

A report is built without the model, so a run stores this at its end, while the model is loaded: `heads.json` holds for each
step and each head beyond rounding and control (48 heads at most) the eight tokens that it attends to most where the step's
answer is predicted, and the five tokens whose logits its output raises most.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pycotmech.files.text import printable
from pycotmech.files.whole import read_sealed, write_sealed
from pycotmech.runs.progress import ProgressReporter

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.model import Model

FILE = "heads.json"
EXAMPLES = 3
EACH, MOST = 12, 48
"""Heads of one step, and of all together."""
KEYS, WORDS = 8, 5
_LONGEST = 65_536
"""Tokens of a text that is read back."""


@dataclass(frozen=True)
class ViewedPrompt:
    """A prompt whose last position is read. example: its name. step: its number. tokens: [T]. answer: the word that follows."""

    example: str
    step: int
    tokens: Tensor
    answer: str


def strongest_heads(values: ArrayLike, limit: ArrayLike, *, each: int = EACH, most: int = MOST) -> list[tuple[int, int]]:
    """The heads whose |value| lies beyond the limit of a step, the largest `each` of every step and `most` of all together.

    values: [step, layer, head], NaN where a step does not count. limit: [step], rounding and control. Strongest first.
    """
    size = np.abs(np.nan_to_num(np.asarray(values, dtype=float)))
    size = np.where(size > np.nan_to_num(np.asarray(limit, dtype=float))[:, None, None], size, 0.0)
    best: dict[int, float] = {}
    for grid in size.reshape(len(size), -1):
        for at in np.argsort(-grid, kind="stable")[:each].tolist():
            if grid[at] > 0:
                best[at] = max(best.get(at, 0.0), float(grid[at]))
    order = sorted(best, key=lambda at: (-best[at], at))[:most]
    return [(at // size.shape[2], at % size.shape[2]) for at in order]


def prompts_of_records(
    model: Model, records: Iterable[Mapping[str, Any]], finished: Mapping[str, Sequence[int]]
) -> list[ViewedPrompt]:
    """The prompts of the first `EXAMPLES` records of examples.jsonl that have a finished step. finished: steps by example."""
    import torch

    out: list[ViewedPrompt] = []
    examples = 0
    for record in records:
        name = str(record.get("name", record["example"]))
        if not (steps := finished.get(name, ())):
            continue
        examples += 1
        if examples > EXAMPLES:
            break
        for step in record.get("steps", [{**record, "step": 0, "answer_word": record.get("answer")}]):
            if step["step"] in steps:
                clean = step["clean"]
                tokens = model.to_tokens(clean if isinstance(clean, str) else torch.tensor(clean), argument="clean")
                answer = step["answer_word"]
                answer = _word(model, answer) if isinstance(answer, int) else answer or ""
                out.append(ViewedPrompt(name, step["step"], tokens, answer))
    return out


def head_views(
    model: Model, prompts: Sequence[ViewedPrompt], heads: Sequence[tuple[int, int]], *, memory_gb: float | None = None
) -> dict[str, Any]:
    """What heads attend to and write at the last position of each prompt, as JSON values.

    keys, mass: the `KEYS` positions with most of the head's attention, and their weights. words, adds: the `WORDS` tokens whose
    logits z W_O raises most, with the final norm as the model applied it, less the mean over the vocabulary.
    Raises ValueError if something attached to the final norm or a projection makes logits no sum over heads.
    Cost: two forward passes of each example (one for all steps whose prompts begin it), and the unembedding of a row for each
    prompt and head.
    """
    begun, forwards = time.perf_counter(), 0
    texts: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    for together in _texts(prompts):
        longest = max((prompt.tokens for prompt in together), key=len)
        rows = sorted({len(prompt.tokens) - 1 for prompt in together})
        place = {row: i for i, row in enumerate(rows)}
        keys, mass = _attention(model, longest, rows)
        words, adds = _written(model, longest, rows, heads, memory_gb)
        forwards += 2
        texts.append({"example": together[0].example, "tokens": [_word(model, t) for t in longest.tolist()]})
        for prompt in together:
            r = place[len(prompt.tokens) - 1]
            found = {}
            for j, (l, h) in enumerate(heads):
                known = keys[l, h, r] >= 0
                found[f"{l}.{h}"] = {
                    "keys": keys[l, h, r][known].tolist(),
                    "mass": [round(float(m), 4) for m in mass[l, h, r][known]],
                    "words": [_word(model, t) for t in words[r, j].tolist()],
                    "adds": [round(float(v), 4) for v in adds[r, j]],
                }
            view = {"example": prompt.example, "step": prompt.step, "text": len(texts) - 1, "read": rows[r]}
            views.append({**view, "answer": prompt.answer, "heads": found})
    cost = {"forwards": forwards, "seconds": round(time.perf_counter() - begun, 3)}
    return {"heads": [f"{l}.{h}" for l, h in heads], "texts": texts, "views": views, "cost": cost}


def _texts(prompts: Sequence[ViewedPrompt]) -> Iterator[list[ViewedPrompt]]:
    """Prompts of one example that begin one text, which is the longest of them."""
    for example in dict.fromkeys(prompt.example for prompt in prompts):
        left = sorted((p for p in prompts if p.example == example), key=lambda p: -len(p.tokens))
        while left:
            text = left[0].tokens
            together = [p for p in left if text[: len(p.tokens)].equal(p.tokens)]
            left = [p for p in left if not text[: len(p.tokens)].equal(p.tokens)]
            yield sorted(together, key=lambda p: p.step)


def _attention(model: Model, tokens: Tensor, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The heaviest keys and their weights, [L, H, R, KEYS]."""
    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.summary import attention_summary

    found = attention_summary(model, tokens, rows=rows, top_k=KEYS, entropy=False, received=False)
    assert isinstance(found, AttentionSummary)  # of one prompt
    return found.top_keys, found.top_weights


def _written(
    model: Model, tokens: Tensor, rows: list[int], heads: Sequence[tuple[int, int]], memory_gb: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens whose logits heads raise most, and by how much: [R, heads, WORDS]."""
    import torch

    from pycotmech.lens.readout import LogitReadout
    from pycotmech.lens.request import check_request, rows_of

    family, readout = model.family, LogitReadout(model.family)
    n = min(WORDS, model.cfg.d_vocab)
    words = np.zeros((len(rows), len(heads), n), dtype=np.int64)
    adds = np.zeros(words.shape)
    with torch.no_grad():
        for found in rows_of(model, check_request(model, tokens, rows, None), ("z",), memory_gb):
            readout.check_norm(found.final)
            factor = readout.factor(found.final)
            written = torch.empty(len(rows), len(heads), model.cfg.d_model, dtype=found.final.dtype, device=found.final.device)
            for l in sorted({l for l, _ in heads}):
                chosen = [j for j, (layer, _) in enumerate(heads) if layer == l]
                written[:, chosen] = family.head_out(l, found.sites["z"][l])[:, [heads[j][1] for j in chosen]].to(written)
            parts = readout.normalised(written, "final", factor[:, None]).flatten(0, 1)
            for (a, b), logits in readout.vocabulary(parts):
                top = (logits - logits.mean(-1, keepdim=True)).topk(n, dim=-1)
                words.reshape(-1, n)[a:b] = top.indices.cpu().numpy()
                adds.reshape(-1, n)[a:b] = top.values.double().cpu().numpy()
    return words, adds


def _word(model: Model, token: int) -> str:
    from pycotmech.lens.request import token_text

    return token_text(model, token)


# ---- to keep --------------------------------------------------------------------------------------------------------------


def keep_head_views(
    folder: Path,
    model: Model,
    prompts: Sequence[ViewedPrompt],
    heads: Sequence[tuple[int, int]],
    identity: Mapping[str, Any],
    progress: ProgressReporter | None = None,
    *,
    memory_gb: float | None = None,
) -> bool:
    """Writes `heads.json` and returns whether it is there. What is there already for the same prompts, heads and identity is
    kept. If it cannot be made, `progress` is told why, and the results are complete without it. Cost: see `head_views`."""
    progress = progress or ProgressReporter()
    asked = {
        "identity": json.loads(json.dumps(identity, default=str)),
        "heads": [f"{l}.{h}" for l, h in heads],
        "prompts": [[p.example, p.step, len(p.tokens)] for p in prompts],
    }
    try:
        if read_sealed(folder / FILE).get("of") == asked:
            return True
    except (OSError, ValueError):
        pass
    if not prompts or not heads:
        return False
    try:
        found = head_views(model, prompts, heads, memory_gb=memory_gb)
    except (ValueError, NotImplementedError) as error:
        progress.note(f"{FILE} is not written, so the report shows no texts of heads: {error}")
        return False
    write_sealed(folder / FILE, {"of": asked, **found})
    return True


def read_head_views(folder: Path) -> dict[str, Any] | None:
    """What `keep_head_views` wrote, with every text printable; None where it is missing, damaged or not of this form."""
    try:
        found = read_sealed(folder / FILE)
        texts = [[printable(t, lines=True) for t in _list(text["tokens"])] for text in _list(found["texts"])]
        views = [_view(view, texts) for view in _list(found["views"])]
        return {"texts": texts, "views": views, "count": len(_list(found["heads"]))}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _view(view: Mapping[str, Any], texts: list[list[str]]) -> dict[str, Any]:
    text, read, step = (_whole(view[name]) for name in ("text", "read", "step"))
    size = len(texts[text])
    if not 0 <= read < size:
        raise ValueError(f"read: got {read}; expected a position of {size} tokens")
    heads = {}
    for name, one in view["heads"].items():
        keys, mass = [_whole(k) for k in _list(one["keys"])], _numbers(one["mass"])
        words, adds = [printable(w, lines=True) for w in _list(one["words"])], _numbers(one["adds"])
        if len(keys) != len(mass) or len(words) != len(adds) or not all(0 <= k < size for k in keys):
            raise ValueError(f"heads: {printable(name)} does not hold as many weights as tokens")
        heads[printable(name)] = {"keys": keys, "mass": mass, "words": words, "adds": adds}
    return {
        "example": printable(view["example"]), "step": step, "text": text, "read": read, "answer": printable(view["answer"]),
        "heads": heads,
    }  # fmt: skip


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _LONGEST:
        raise ValueError(f"expected a list of at most {_LONGEST} entries")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number, got {printable(value)[:20]}")
    return value


def _numbers(values: Any) -> list[float]:
    out = [float(v) for v in _list(values)]
    if not all(map(math.isfinite, out)):
        raise ValueError("expected finite numbers")
    return out

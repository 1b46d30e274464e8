"""The attention of every head over one text, in a folder: `summarise_text` is what `pycotmech attention` does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pycotmech._optional import warn_of_missing
from pycotmech.files.arrays import save_arrays
from pycotmech.files.text import cell
from pycotmech.files.write import replacing, write_text
from pycotmech.runs.folder import checked_path, open_folder
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import facts_of, model_identity
from pycotmech.runs.settings import torch_threads

if TYPE_CHECKING:
    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import HeadScores
    from pycotmech.model import Model

STORE = "summary.zarr"


class TextAttention(NamedTuple):
    """What `summarise_text` found and wrote."""

    model: Model
    summary: AttentionSummary
    scores: HeadScores


def summarise_text(
    prompt: str,
    out: str | os.PathLike,
    *,
    model: str,
    segments: str | None = None,
    top_k: int = 8,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
) -> TextAttention:
    """Summarises the attention of every head over a text, and writes it to the folder `out`.

    Writes heads.csv (a line per head), tokens.csv (the tokens, their segments, the attention they receive), summary.zarr
    (everything, by layer, head and row), scores.png and mass.png. segments: see `read_segments`.
    Raises ValueError or OSError naming the argument, and writes nothing then; also where the folder holds results already and
    `overwrite` is False.
    """
    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import head_scores
    from pycotmech.attention.segments import SegmentRule
    from pycotmech.attention.statistics import Wanted
    from pycotmech.attention.summary import attention_summary
    from pycotmech.model import Model

    progress = progress or ProgressReporter()
    Wanted(top_k)
    named = read_segments(segments)
    _refuse_results(checked_path(out), overwrite)
    with torch_threads(threads):
        loaded = Model.from_pretrained(model, dtype=dtype, device=device)
        tokens = loaded.to_tokens(prompt, argument="text")
        if len(tokens) < 2:
            raise ValueError("text: a single token has nothing to attend to; expected two or more")
        rule = {n: where if isinstance(where, slice) else find_text(loaded, prompt, where, n) for n, where in named.items()}
        SegmentRule(rule).label(len(tokens))
        with open_folder(out) as folder:
            _refuse_results(folder, overwrite)
            progress.note("\n".join([f"{loaded}, {len(tokens)} tokens", *(f"note: {note}" for note in loaded.notes)]))
            progress.begin("attention", loaded.cfg.n_layers, "layer")
            summary = attention_summary(
                loaded, tokens, segments=rule, top_k=top_k, progress=lambda done, total: progress.at(done)
            )
            assert isinstance(summary, AttentionSummary)  # of one text
            progress.end()
            scores = head_scores(loaded, tokens)
            arguments = {"model": model, "segments": segments, "top_k": top_k, "dtype": dtype, "device": device}
            identity = {**model_identity(loaded), "prompts": hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]}
            made = {"identity": identity, "about": facts_of(loaded, arguments)}
            _write(folder, loaded, summary, scores, made)
    return TextAttention(loaded, summary, scores)


def _refuse_results(folder: Path, overwrite: bool) -> None:
    if (folder / STORE).exists() and not overwrite:
        raise ValueError(f"out: {folder} already contains results; give another folder, or --overwrite")


def read_segments(text: str | None) -> dict[str, slice | str]:
    """Reads 'a=3:7,b=9' or a JSON file into {name: token slice or piece of the text}. Raises ValueError naming `segments`."""
    if not text:
        return {}
    if text.endswith(".json"):
        try:
            found = json.loads(Path(text).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"segments: {text} is not a JSON file ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"segments: {text} must contain an object with the segments' names, got {type(found).__name__}")
        return {name: _from_json(name, where) for name, where in found.items()}
    out: dict[str, slice | str] = {}
    for part in text.split(","):
        name, equals, where = (s.strip() for s in part.partition("="))
        try:
            bounds = [int(b) if b.strip() else None for b in where.split(":")]
            if not equals or not name or len(bounds) > 2:
                raise ValueError
            found = slice(*bounds) if len(bounds) == 2 else _one(int(where))
        except ValueError:
            raise ValueError(f"segments: got {part!r}; expected name=start:stop or name=position") from None
        if name in out:
            raise ValueError(f"segments: the name {name!r} is given twice")
        out[name] = found
    return out


def _from_json(name: str, where: object) -> slice | str:
    if isinstance(where, str) and where:
        return where
    if isinstance(where, list) and len(where) == 2 and all(b is None or type(b) is int for b in where):
        return slice(*where)
    if type(where) is int:
        return _one(where)
    raise ValueError(f"segments[{name!r}]: got {where!r}; expected [start, stop], a position, or a piece of the text")


def _one(position: int) -> slice:
    return slice(position, position + 1 or None)


def find_text(model: Model, prompt: str, piece: str, name: str) -> slice:
    """Returns the tokens that hold the only occurrence of a piece of the prompt."""
    n = prompt.count(piece)
    if n != 1:
        raise ValueError(f"segments[{name!r}]: {piece!r} occurs {n} times in the text; expected once, or token positions")
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise ValueError(f"segments[{name!r}]: this tokenizer does not give the offsets of its tokens; give token positions")
    coded = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
    ids = model.to_tokens(prompt).tolist()
    shift = len(ids) - len(coded["input_ids"])
    if shift < 0 or ids[shift:] != coded["input_ids"]:
        raise ValueError(f"segments[{name!r}]: special tokens are inside or after the text; give token positions")
    begin = prompt.index(piece)
    inside = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < begin + len(piece) and b > begin]
    return slice(inside[0] + shift, inside[-1] + 1 + shift)


def _write(folder: Path, model: Model, summary: AttentionSummary, scores: HeadScores, made: Mapping[str, Any]) -> None:
    from pycotmech.attention.scores import KINDS

    heads = summary.per_head().merge(scores.to_dataframe(), on=["layer", "head"])
    write_text(folder / "heads.csv", heads.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    assert summary.tokens is not None and model.tokenizer is not None  # of a text
    table = summary.per_token([cell(model.tokenizer.decode([int(t)])) for t in summary.tokens])
    write_text(folder / "tokens.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    data = summary.to_xarray().assign_attrs(notes=list(model.notes), dtype=str(model.cfg.dtype).removeprefix("torch."))
    data = data.assign({f"score_{kind}": (("layer", "head"), scores[kind]) for kind in KINDS})
    data = data.assign_coords(text=("key", np.array(table["text"].tolist(), dtype=str))).assign_attrs(
        provenance=json.dumps(made)
    )
    save_arrays(data, folder / STORE)
    if warn_of_missing("matplotlib", "no figures are drawn"):
        return
    for name, result in (("scores", scores), ("mass", summary)):
        with replacing(folder / f"{name}.png") as temporary:
            result.plot(path=str(temporary))

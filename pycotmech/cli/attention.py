"""`pycotmech attention`: where every head of a model looks in a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import HeadScores
    from pycotmech.model import Model

_BEST = 5
"""Heads named on a line of the printed table."""


def register(app: typer.Typer) -> None:
    """Adds the command `attention` to the shell's application."""
    app.command("attention")(attention)


def attention(
    text: Annotated[Path, typer.Option(help="Text file with the prompt; '-' reads standard input.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; made if it is not there.")],
    model: Annotated[str, typer.Option(help="Alias, folder, GGUF file or hub name.")] = "smollm2-135m",
    segments: Annotated[
        str | None,
        typer.Option(
            help="Groups of tokens: 'question=575:610,shots=1:575' (token positions), or a JSON file "
            '{"question": [575, 610], "rule": "a piece of the text"}.'
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many of the heaviest keys of each row to keep, 0 to 64.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Of PyTorch. Default: one per core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are in the folder already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Summarise the attention of every head over a text, in one pass and without the T x T patterns.

    Writes heads.csv (one line per head), summary.zarr (everything, by layer, head and row), tokens.csv (the tokens, their
    segments, the attention they receive), scores.png and mass.png, and prints which heads look where.
    """
    # --debug is looked at by the shell's main(), which turns every other error into one line.
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: got {threads}; expected 1 or more")
        import torch

        torch.set_num_threads(threads)
    _run(text, out, model, segments, top_k, dtype, device, overwrite, quiet)


def _run(
    text: Path, out: Path, name: str, segments: str | None, top_k: int, dtype: str, device: str, overwrite: bool, quiet: bool
) -> None:
    prompt = sys.stdin.read() if str(text) == "-" else text.read_text("utf-8")
    prompt = prompt.rstrip("\n")
    if not prompt:
        raise ValueError(f"text: {text} is empty")
    zarr = out / "summary.zarr"
    if zarr.exists() and not overwrite:
        raise ValueError(f"out: {out} holds results already; choose another folder, or give --overwrite")

    from tqdm.auto import tqdm

    from pycotmech.attention.scores import head_scores
    from pycotmech.attention.segments import SegmentRule
    from pycotmech.attention.statistics import Wanted
    from pycotmech.attention.summary import attention_summary
    from pycotmech.model import Model

    Wanted(top_k)
    named = read_segments(segments)
    model = Model.from_pretrained(name, dtype=dtype, device=device)
    tokens = model.to_tokens(prompt, argument="text")
    if len(tokens) < 2:
        raise ValueError("text: a single token has nothing to look at; expected two or more")
    rule = {n: where if isinstance(where, slice) else find_text(model, prompt, where, n) for n, where in named.items()}
    SegmentRule(rule).label(len(tokens))
    if not quiet:
        typer.echo("\n".join([f"{model}, {len(tokens)} tokens", *(f"note: {note}" for note in model.notes)]))
    with tqdm(total=model.cfg.n_layers, unit="layer", disable=quiet, leave=False) as bar:
        summary = attention_summary(model, tokens, segments=rule, top_k=top_k, progress=lambda *_: bar.update())
    scores = head_scores(model, tokens)
    write(out, model, summary, scores)
    if not quiet:
        typer.echo(table(summary, scores))
        typer.echo(f"\nwritten to {out}: heads.csv, tokens.csv, summary.zarr, scores.png, mass.png")


def read_segments(text: str | None) -> dict[str, slice | str]:
    """'a=3:7,b=9' or a JSON file -> {name: token slice, or a piece of the text}. ValueError names `segments`."""
    if not text:
        return {}
    if text.endswith(".json"):
        try:
            found = json.loads(Path(text).read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"segments: {text} is no JSON file ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"segments: {text} must hold an object of names, got {type(found).__name__}")
        return {name: _from_json(name, where) for name, where in found.items()}
    out: dict[str, slice | str] = {}
    for part in text.split(","):
        name, equals, where = (s.strip() for s in part.partition("="))
        try:
            bounds = [int(b) if b.strip() else None for b in where.split(":")]
        except ValueError:
            bounds = []
        if not equals or not name or len(bounds) not in (1, 2) or (len(bounds) == 1 and bounds[0] is None):
            raise ValueError(f"segments: got {part!r}; expected name=start:stop or name=position")
        if name in out:
            raise ValueError(f"segments: the name {name!r} stands twice")
        out[name] = slice(bounds[0], bounds[1]) if len(bounds) == 2 else _one(bounds[0])
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
    """The tokens that hold the only occurrence of a piece of the prompt."""
    n = prompt.count(piece)
    if n != 1:
        raise ValueError(f"segments[{name!r}]: {piece!r} occurs {n} times in the text; expected once, or token positions")
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise ValueError(f"segments[{name!r}]: this tokenizer does not say where its tokens stand; give token positions")
    coded = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
    ids = model.to_tokens(prompt).tolist()
    shift = len(ids) - len(coded["input_ids"])
    if shift < 0 or ids[shift:] != coded["input_ids"]:
        raise ValueError(f"segments[{name!r}]: special tokens stand inside or behind the text; give token positions")
    begin = prompt.index(piece)
    inside = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < begin + len(piece) and b > begin]
    return slice(inside[0] + shift, inside[-1] + 1 + shift)


def write(out: Path, model: Model, summary: AttentionSummary, scores: HeadScores) -> None:
    """Tables and figures of one text."""
    out.mkdir(parents=True, exist_ok=True)
    heads = summary.per_head().merge(scores.to_dataframe(), on=["layer", "head"])
    heads.to_csv(out / "heads.csv", index=False, float_format="%.6g")
    token_table(model, summary).to_csv(out / "tokens.csv", index=False, float_format="%.6g")
    data = summary.to_xarray().assign_attrs(notes=list(model.notes), dtype=str(model.cfg.dtype).removeprefix("torch."))
    data.to_zarr(out / "summary.zarr", mode="w", consolidated=False)
    scores.plot(path=str(out / "scores.png"))
    summary.plot(path=str(out / "mass.png"))


def token_table(model: Model, summary: AttentionSummary) -> pd.DataFrame:
    """One line per token: its text, its segment, and the attention it receives, averaged over heads and later rows."""
    import numpy as np
    import pandas as pd

    tokens = summary.tokens
    labels = ["" if g < 0 else summary.segment_names[g] for g in summary.labels]
    seen_by = np.arange(len(tokens), 0, -1)  # each row sees itself and what is before it
    return pd.DataFrame(
        {
            "position": np.arange(len(tokens)),
            "token": tokens,
            "text": [model.tokenizer.decode([int(t)]) for t in tokens],
            "segment": labels,
            "received": summary.received.mean((0, 1)) / seen_by,
        }
    )


def table(summary: AttentionSummary, scores: HeadScores) -> str:
    """Which heads look where, in a few lines: the heads with the highest mean attention to each thing."""
    heads = summary.per_head()
    lines = ["", "mean attention, highest heads (layer.head)"]
    what = {
        "first": "the first token",
        "previous": "the previous token",
        "duplicate": "earlier copies of the token",
        "induction": "what followed an earlier copy",
    }
    rows = [(text, scores.top(kind, _BEST)) for kind, text in what.items()]
    for name in summary.segment_names[: -1 if summary.segment_names[-1] == "first" else None]:
        best = heads.nlargest(_BEST, f"mass_{name}")
        found = zip(best["layer"], best["head"], best[f"mass_{name}"], strict=True)
        rows.append((f"segment {name}", [((l, h), score) for l, h, score in found]))
    width = max(len(text) for text, _ in rows)
    for text, best in rows:
        lines.append(f"  {text:<{width}}  " + "  ".join(f"{l}.{h} {score:.2f}" for (l, h), score in best if score == score))
    sharp, flat = heads.nsmallest(1, "entropy").iloc[0], heads.nlargest(1, "entropy").iloc[0]
    lines.append(
        f"  sharpest {sharp['layer']:.0f}.{sharp['head']:.0f} ({sharp['entropy']:.2f} nats), "
        f"flattest {flat['layer']:.0f}.{flat['head']:.0f} ({flat['entropy']:.2f} nats)"
    )
    return "\n".join(lines)

"""`pycotmech attention`: where every head of a model looks in a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pycotmech.cli import options as o
from pycotmech.cli.output import say_json

if TYPE_CHECKING:
    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import HeadScores

_FILES = ("heads.csv", "tokens.csv", "summary.zarr", "scores.png", "mass.png")
_KINDS = {
    "first": "the first token",
    "previous": "the previous token",
    "duplicate": "earlier copies of the token",
    "induction": "what followed an earlier copy",
}
_BEST = 5
"""Heads named on a line of the printed table."""
_SEGMENTS = (
    "Groups of tokens: 'question=575:610,shots=1:575' (token positions), or a JSON file "
    '{"question": [575, 610], "rule": "a piece of the text"}.'
)


def attention(
    text: Annotated[str, o.plain("The text file with the prompt; '-' reads standard input.", metavar="FILE")],
    out: Annotated[str, o.plain("The folder for tables and figures, made if it is missing.", metavar="FOLDER")],
    model: o.Model = "smollm2-135m",
    segments: Annotated[str | None, o.analysed(_SEGMENTS)] = None,
    top_k: Annotated[int, o.analysed("The number of keys with the largest weights to keep per row, 0 to 64.")] = 8,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    overwrite: Annotated[bool, o.written("Replace results that are already in the folder.", "--overwrite")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Summarise the attention of every head over a text, in one pass and without the T x T patterns.

    Writes heads.csv (one line per head), summary.zarr (everything, by layer, head and row), tokens.csv (the tokens, their
    segments, the attention they receive), scores.png and mass.png, and prints which heads attend to what.
    """
    from pycotmech.cli.bars import Bars
    from pycotmech.runs.attention import summarise_text

    file = o.path(text, "text")
    assert file is not None
    if text != "-" and not file.is_file():
        raise FileNotFoundError(f"text: there is no file {file}; expected a text file, or '-' for standard input")
    try:
        prompt = (sys.stdin.read() if text == "-" else file.read_text("utf-8")).rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {text} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not prompt:
        raise ValueError(f"text: {text} is empty")
    found = summarise_text(
        prompt, out, model=model, segments=segments, top_k=top_k, dtype=dtype, device=device, threads=threads,
        overwrite=overwrite, progress=Bars(quiet),
    )  # fmt: skip
    files = [name for name in _FILES if (Path(out) / name).exists()]
    if as_json:
        said = {kind: [_place(*place, score) for place, score in best] for kind, best in strongest(found.summary, found.scores)}
        entropy = found.summary.per_head().sort_values("entropy")[["layer", "head", "entropy"]]
        say_json({
            "folder": out, "model": found.model.name, "tokens": int(found.summary.labels.shape[-1]), "files": files,
            "notes": list(found.model.notes), "strongest": said,
            "sharpest": entropy.iloc[0].to_dict(), "flattest": entropy.iloc[-1].to_dict(),
        })  # fmt: skip
    elif not quiet:
        o.say(table(found.summary, found.scores))
        o.say(f"\nwritten to {out}: {', '.join(files)}")


def _place(layer: int, head: int, score: float) -> dict[str, float]:
    return {"layer": int(layer), "head": int(head), "attention": score}


def strongest(summary: AttentionSummary, scores: HeadScores) -> list[tuple[str, list[tuple[tuple[int, int], float]]]]:
    """Returns the heads with the highest mean attention to each thing: of each kind, then of each segment."""
    heads = summary.per_head()
    rows = [(kind, scores.top(kind, _BEST)) for kind in _KINDS]
    for name in summary.segment_names[: -1 if summary.segment_names[-1] == "first" else None]:
        best = heads.nlargest(_BEST, f"mass_{name}")
        found = zip(best["layer"], best["head"], best[f"mass_{name}"], strict=True)
        rows.append((f"segment {name}", [((l, h), score) for l, h, score in found]))
    return rows


def table(summary: AttentionSummary, scores: HeadScores) -> str:
    """Returns which heads look where, in a few lines: the heads with the highest mean attention to each thing."""
    heads = summary.per_head()
    lines = ["", "mean attention, highest heads (layer.head)"]
    rows = [(_KINDS.get(name, name), best) for name, best in strongest(summary, scores)]
    width = max(len(text) for text, _ in rows)
    for text, best in rows:
        lines.append(f"  {text:<{width}}  " + "  ".join(f"{l}.{h} {score:.2f}" for (l, h), score in best if score == score))
    sharp, flat = heads.nsmallest(1, "entropy").iloc[0], heads.nlargest(1, "entropy").iloc[0]
    lines.append(
        f"  sharpest {sharp['layer']:.0f}.{sharp['head']:.0f} ({sharp['entropy']:.2f} nats), "
        f"flattest {flat['layer']:.0f}.{flat['head']:.0f} ({flat['entropy']:.2f} nats)"
    )
    return "\n".join(lines)

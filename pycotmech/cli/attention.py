"""`pycotmech attention`: where every head of a model looks in a text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from pycotmech.cli import options as o

if TYPE_CHECKING:
    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import HeadScores

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
    segments: Annotated[str | None, o.plain(_SEGMENTS)] = None,
    top_k: Annotated[int, o.plain("The number of heaviest keys kept of each row, 0 to 64.")] = 8,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    threads: o.Threads = None,
    overwrite: Annotated[bool, o.plain("Replace results that are in the folder already.", "--overwrite")] = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Summarise the attention of every head over a text, in one pass and without the T x T patterns.

    Writes heads.csv (one line per head), summary.zarr (everything, by layer, head and row), tokens.csv (the tokens, their
    segments, the attention they receive), scores.png and mass.png, and prints which heads look where.
    """
    from pycotmech.cli.bars import Bars
    from pycotmech.runs.attention import summarise_text

    file = o.path(text, "text")
    assert file is not None
    prompt = (sys.stdin.read() if text == "-" else file.read_text("utf-8")).rstrip("\n")
    if not prompt:
        raise ValueError(f"text: {text} is empty")
    found = summarise_text(
        prompt, out, model=model, segments=segments, top_k=top_k, dtype=dtype, device=device, threads=threads,
        overwrite=overwrite, progress=Bars(quiet),
    )  # fmt: skip
    if not quiet:
        o.say(table(found.summary, found.scores))
        o.say(f"\nwritten to {out}: heads.csv, tokens.csv, summary.zarr, scores.png, mass.png")


def table(summary: AttentionSummary, scores: HeadScores) -> str:
    """Returns which heads look where, in a few lines: the heads with the highest mean attention to each thing."""
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

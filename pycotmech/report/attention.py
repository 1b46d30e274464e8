"""The page of `pycotmech attention`: where the heads of a model look in one text."""

from __future__ import annotations

import numpy as np

from pycotmech._words import listed, plural
from pycotmech.attention.scores import KINDS
from pycotmech.report import charts
from pycotmech.report.page import Draw, Page, Quote, Section, Table, sentence
from pycotmech.report.run import made
from pycotmech.runs.results import AttentionResults

_TOKENS = 200
_KEYS = 8
_KINDS = (
    "Mean attention of a head to: the first token; the previous token; earlier copies of the row's own token (duplicate); what "
    "followed earlier copies of it (induction). Grey: no row of this text has such a place."
)


def attention_page(results: AttentionResults) -> Page:
    """The page of a folder of `attention`."""
    summary, data, provenance = results.summary(), results.data, results.provenance
    model = str(provenance.get("model") or summary.model_name)
    L, H = summary.mass.shape[:2]
    names = list(summary.segment_names)
    mass = summary.over_rows(summary.mass, None)  # [L, H, G]
    tokens = results.table("tokens")
    texts = [str(t) for t in (tokens["text"] if "text" in tokens else tokens["token"])]
    last = len(summary.rows) - 1
    details = {}
    for l, h in np.ndindex(L, H):
        keys, weights = summary.top_keys[l, h, last][:_KEYS], summary.top_weights[l, h, last][:_KEYS]
        best = [(k, w) for k, w in zip(keys.tolist(), weights.tolist()) if 0 <= k < len(texts)]
        rows = [[f"{texts[k]} ({k})", charts.number(w)] for k, w in best]
        if rows:
            details[f"{l}.{h}"] = {"title": "Where it looks from the last token", "rows": rows, "unit": "share"}
    words = ["first token" if name == "first" else name for name in names]
    maps = [charts.head_map(name, mass[..., g]) for g, name in enumerate(words)]
    on = charts.heads(
        "Attention on each segment", "share of attention, mean over rows", (L, H), maps, unit="share", scale="sequential",
        details=details,
    )  # fmt: skip
    kinds = [kind for kind in KINDS if f"score_{kind}" in data]
    scores = [charts.head_map(kind.replace("_", " "), data[f"score_{kind}"].values) for kind in kinds]
    sections = [
        Section("segments", "Attention by segment", [Draw(on)], lead="Choose a segment above the map, and a head in it.")
    ]
    if scores:
        known = charts.heads("Score of each kind", "score", (L, H), scores, unit="share", scale="sequential", details=details)
        sections.append(Section("kinds", "Known kinds of heads", [Draw(known)], lead=_KINDS))
    received = charts.bars(
        "Attention that each token receives", "mean weight in later rows", [str(p) for p in tokens["position"][:_TOKENS]],
        {"all heads": tokens["received"].to_numpy()[:_TOKENS]}, texts=texts[:_TOKENS], across="position of the token",
    )  # fmt: skip
    rows = tokens.head(_TOKENS).values.tolist()
    sections.append(
        Section(
            "tokens",
            "The tokens",
            [
                Quote([("Text", _joined(texts[:_TOKENS]) + ("…" if len(texts) > _TOKENS else ""))]),
                Draw(received),
                Table(
                    "Tokens (tokens.csv)", list(map(str, tokens.columns)), rows, ("position", "token", "received"), closed=True
                ),
            ],
        )
    )
    most, named = mass.mean((0, 1)), ["the first token" if name == "first" else f"“{name}”" for name in names]
    order = np.argsort(-most, kind="stable")
    shares = [f"{most[g]:.0%} to {named[g]}" for g in order.tolist()]
    sink = 0.0 if summary.sink is None else float(summary.sink.mean())
    if sink > 0.005:
        shares.append(f"{sink:.0%} to the heads' own sinks, which are no tokens")
    if (rest := 1 - float(most.sum()) - sink) > 0.005:
        shares.append(f"{rest:.0%} to tokens of no segment")
    strongest = []
    for g in order.tolist()[:3]:
        l, h = np.unravel_index(int(np.argmax(mass[..., g])), (L, H))
        strongest.append(f"{mass[l, h, g]:.0%} of L{l}H{h}'s goes to {named[g]}")
    return Page(
        title=f"{model}: where its heads look in one text",
        kicker="Attention of every head",
        asked="Which part of the text does each head attend to, and which tokens receive attention?",
        answer=[
            f"Over all {L * H} heads and {plural(len(summary.rows), 'row')}, attention goes {listed(shares)}. The largest "
            f"shares of single heads: {listed(strongest)}."
        ],
        facts={
            "Model": model, "Size": f"{L} layers × {H} heads", "Tokens": len(texts), "Segments": words,
            "Precision": provenance.get("dtype"),
        },
        sections=sections,
        notes=[sentence(note) for note in provenance.get("notes") or []],
        made=made(provenance),
    )  # fmt: skip


def _joined(texts: list[str]) -> str:
    """The tokens as one text; with spaces between them where the tokenizer's tokens hold none."""
    return ("" if any(text[:1].isspace() for text in texts) else " ").join(texts)

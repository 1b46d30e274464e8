"""Figures of the lens: heads and MLPs by layer, curves over layers, and what each layer would say at each position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pycotmech.lens.heads import HeadLogits
    from pycotmech.lens.results import LogitLens

_DPI = 150
_LONGEST = 9
_STATES = {
    "resid_post": "block",
    "resid_pre": "block (before it)",
    "resid_mid": "block (after its attention)",
    "resid": "blocks passed",
}
_NORMS = {
    "final": "the final norm's factor of the run: parts add up to the logit",
    "own": "each part normalised by itself: parts do not add up",
    "none": "without the final norm",
}


def heads_figure(found: HeadLogits, *, token: int = 0, title: str | None = None, path: str | None = None) -> Figure:
    """`HeadLogits.plot`."""
    heads, mlps = found.mean(found.heads, token), found.mean(found.mlps, token)
    L, H = heads.shape
    height = min(max(3.4, 0.2 * L + 1.7), 11.0)
    figure = Figure(figsize=(min(max(4.2, 0.3 * H + 1.8), 11.0) + 2.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[max(2.4, 0.3 * H), 1.3], sharey=True)
    limit = float(np.nanmax(np.abs(heads))) or 1.0
    image = left.imshow(heads, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower", aspect="auto", interpolation="nearest")
    left.set_xlabel("head")
    left.set_ylabel("layer")
    for (l, h), value in found.top(8, token=token):
        if abs(value) >= 0.1 * limit:
            colour = "white" if abs(value) > 0.55 * limit else "black"
            left.text(h, l, f"{value:.2g}".replace("-", "−"), fontsize=6, color=colour, ha="center", va="center")
    right.barh(np.arange(L), mlps, color=["#3a76af" if value >= 0 else "#c44e52" for value in mlps], height=0.75)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_xlabel("MLP")
    for axis in (left, right):
        axis.locator_params(axis="y", integer=True)
        axis.tick_params(labelsize=8)
    left.locator_params(axis="x", integer=True)
    figure.colorbar(image, ax=left, pad=0.02).set_label("contribution to the logit")
    figure.suptitle(title or f"What writes {found.labels[token]!r}", fontsize=11, fontweight="bold")
    lines = [f"{found.model_name}; {_over(found)}{_NORMS[found.normalization]}"]
    constant = f"embedding {_plain_mean(found.embedding, token):+.2f}, sum of heads {heads.sum():+.2f}, "
    lines.append(constant + f"sum of MLPs {mlps.sum():+.2f}; the model's logit {_plain_mean(found.total, token):+.2f}")
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.35")
    return _saved(figure, path)


def curves_figure(lens: LogitLens, *, title: str | None = None, path: str | None = None) -> Figure:
    """`LogitLens.plot`, curves."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    p = lens.mean(lens.probabilities)
    for k, label in enumerate(lens.labels):
        axis.plot(lens.layers, p[:, k], marker="o", markersize=3, label=repr(label))
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel(_STATES[lens.site])
    axis.set_ylabel("probability by the logit lens")
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25)
    other = axis.twinx()
    other.plot(lens.layers, lens.mean(lens.entropy), color="0.6", linestyle=":", label="entropy")
    other.set_ylabel("entropy, nats", color="0.45")
    other.set_ylim(bottom=0)
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, fontsize=8, framealpha=0.85)
    figure.suptitle(title or "What each layer would say", fontsize=11, fontweight="bold")
    figure.supxlabel(f"{lens.model_name}; {_over(lens)}logit lens of {lens.site}", fontsize=7.5, color="0.35")
    return _saved(figure, path)


def grid_figure(lens: LogitLens, *, example: int = 0, title: str | None = None, path: str | None = None) -> Figure:
    """`LogitLens.plot`, the grid."""
    at = example if "example" in lens.axes else ...
    words, p = lens.top_ids[at][..., 0], lens.top_probabilities[at][..., 0]  # [R, L]
    positions = lens.positions[at].reshape(-1)
    R, L = p.shape
    figure = Figure(figsize=(max(4.6, 0.62 * R + 1.6), max(2.6, 0.27 * L + 1.5)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(p.T, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    for r in range(R):
        for l in range(L):
            axis.text(
                r, l, _cut(lens.text(words[r, l])), fontsize=6, ha="center", va="center",
                color="black" if p[r, l] > 0.6 else "white", clip_on=True,
            )  # fmt: skip
    axis.set_xticks(range(R))
    if lens.prompt is not None:
        axis.set_xticklabels([_cut(lens.text(lens.prompt[q])) for q in positions], rotation=60, ha="right", fontsize=7)
    else:
        axis.set_xticklabels([str(q) for q in positions], fontsize=7)
    axis.locator_params(axis="y", integer=True)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("token read")
    axis.set_ylabel(_STATES[lens.site])
    figure.colorbar(image, ax=axis, pad=0.02).set_label("probability")
    figure.suptitle(title or "What each layer would say next", fontsize=11, fontweight="bold")
    figure.supxlabel(f"{lens.model_name}; likeliest token by the logit lens of {lens.site}", fontsize=7.5, color="0.35")
    return _saved(figure, path)


def _cut(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("$", "\\$").strip(" ") or "' '"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _over(found: HeadLogits | LogitLens) -> str:
    shape = found.tokens.shape
    return "".join(f"mean over {n} {axis}s; " for n, axis in zip(shape, found.axes, strict=False) if n > 1)


def _plain_mean(values, token: int) -> float:
    return float(np.nanmean(values[..., token]))


def _saved(figure: Figure, path: str | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=_DPI, metadata={"Software": "pycotmech"})
    return figure

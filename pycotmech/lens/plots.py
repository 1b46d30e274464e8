"""Figures of the lens: heads and MLPs by layer, curves over layers, and what each layer would say at each position."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import finished
from pycotmech.figures.library import Figure

_LONGEST = 9
_STATES = {
    "resid_post": "block",
    "resid_pre": "block (before it)",
    "resid_mid": "block (after its attention)",
    "resid": "blocks passed",
}


def heads_figure(
    heads: NDArray,
    mlps: NDArray,
    strongest: Sequence[tuple[tuple[int, int], float]],
    *,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """Contributions of heads [L, H] as a map, and of MLPs [L] as bars. strongest: heads whose numbers are written."""
    L, H = heads.shape
    height = min(max(3.4, 0.2 * L + 1.7), 11.0)
    figure = Figure(figsize=(min(max(4.2, 0.3 * H + 1.8), 11.0) + 2.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[max(2.4, 0.3 * H), 1.3], sharey=True)
    limit = float(np.nanmax(np.abs(heads))) or 1.0
    image = left.imshow(heads, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower", aspect="auto", interpolation="nearest")
    left.set_xlabel("head")
    left.set_ylabel("layer")
    for (l, h), value in strongest:
        if abs(value) >= 0.1 * limit:
            colour = "white" if abs(value) > 0.55 * limit else "black"
            left.text(h, l, f"{value:.2g}".replace("-", "−"), fontsize=6, color=colour, ha="center", va="center")
    right.barh(np.arange(L), mlps, color=["#3a76af" if value >= 0 else "#c44e52" for value in mlps], height=0.75)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_xlabel("MLP")
    for axis in (left, right):
        axis.locator_params(axis="y", integer=True)
        axis.tick_params(labelsize=8)
    left.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=left, pad=0.02).set_label("contribution to the logit")
    return finished(figure, title, lines, path=path)


def curves_figure(
    layers: NDArray,
    probabilities: NDArray,
    entropy: NDArray,
    labels: Sequence[str],
    *,
    site: str,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """The probabilities [layers, K] of the labelled tokens over the layers [layers], and the entropy [layers]."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for k, label in enumerate(labels):
        axis.plot(layers, probabilities[:, k], marker="o", markersize=3, label=repr(label))
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel(_STATES[site])
    axis.set_ylabel("probability by the logit lens")
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25)
    other = axis.twinx()
    other.plot(layers, entropy, color="0.6", linestyle=":", label="entropy")
    other.set_ylabel("entropy, nats", color="0.45")
    other.set_ylim(bottom=0)
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, fontsize=8, framealpha=0.85)
    return finished(figure, title, lines, path=path)


def grid_figure(
    probabilities: NDArray,
    words: Sequence[Sequence[str]],
    ticks: Sequence[str],
    *,
    site: str,
    of_text: bool,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """The likeliest words [R, L] at each position and layer, coloured by their probabilities [R, L].

    ticks [R]: the tokens at the positions (of_text), or their numbers.
    """
    R, L = probabilities.shape
    figure = Figure(figsize=(max(4.6, 0.62 * R + 1.6), max(2.6, 0.27 * L + 1.5)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(probabilities.T, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto", interpolation="nearest")
    for r, row in enumerate(words):
        for l, word in enumerate(row):
            colour = "black" if probabilities[r, l] > 0.6 else "white"
            axis.text(r, l, _cut(word), fontsize=6, ha="center", va="center", color=colour, clip_on=True)
    axis.set_xticks(range(R))
    if of_text:
        axis.set_xticklabels([_cut(tick) for tick in ticks], rotation=60, ha="right", fontsize=7)
    else:
        axis.set_xticklabels(ticks, fontsize=7)
    axis.locator_params(axis="y", integer=True)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("token read")
    axis.set_ylabel(_STATES[site])
    figure.colorbar(image, ax=axis, pad=0.02).set_label("probability")
    return finished(figure, title, lines, path=path)


def _cut(text: str) -> str:
    shown = text.replace("\n", "\\n").strip(" ") or "' '"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def averaged(shape: Sequence[int], axes: Sequence[str]) -> str:
    """Over what a figure's numbers are averaged, in words."""
    return "".join(f"mean over {n} {axis}s; " for n, axis in zip(shape, axes, strict=False) if n > 1)

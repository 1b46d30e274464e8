"""What `logit_lens` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.display import Arrays, Displayed, View

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure


_TITLE = "What each layer would say"


def label_positions(axes: tuple[str, ...], positions: NDArray, coords: dict[str, Any], data: dict[str, Any]) -> None:
    """Where there is an axis of positions: its labels into coords, or into data if examples have different ones."""
    if "position" not in axes:
        return
    if positions.ndim == 1 or bool((positions == positions[:1]).all()):
        coords["position"] = positions.reshape(-1, positions.shape[-1])[0]
    else:
        data["positions"] = (axes, positions)


@dataclass(frozen=True, eq=False)
class LogitLens(Displayed):
    """Final norm and unembedding of the residual stream of each layer. K tokens followed, k likeliest kept; first the `axes`:
    "example" and "position" where there are several. Float32 (float64 for a float64 model).

    logits, probabilities [.., L, K]: of the tokens that are followed. NaN and 0 where a table has no token.
    ranks [.., L, K]: how many tokens are likelier; 0: it is what the layer would say. -1 where a table has no token.
    entropy [.., L]: of the distribution over the vocabulary, nats.
    top_ids, top_probabilities [.., L, k]: the likeliest tokens, descending; ties in no given order.
    tokens [.., K]: ids followed. labels: a name for each of the K. positions: of the rows, counted from the front.
    site: "resid_post" (entry l: after block l), "resid_pre", "resid_mid", or "resid" (entry j: after j blocks).
    """

    logits: NDArray
    probabilities: NDArray
    ranks: NDArray[np.int32]
    entropy: NDArray
    top_ids: NDArray[np.int32]
    top_probabilities: NDArray
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    axes: tuple[str, ...]
    labels: tuple[str, ...]
    site: str
    model_name: str
    tokenizer: Any = field(default=None, repr=False)
    prompt: NDArray[np.int64] | None = field(default=None, repr=False)
    """The token ids of the prompt, if there was one."""

    @property
    def layers(self) -> NDArray[np.int64]:
        """What the layer axis counts: 0 .. L - 1, or the number of blocks passed."""
        return np.arange(self.entropy.shape[-1])

    def mean(self, values: NDArray) -> NDArray:
        """Averaged over examples and positions, what is missing left out: [L, K] or [L]."""
        values = np.where(self._missing(values), np.nan, values)
        return np.asarray(np.nanmean(values, axis=tuple(range(len(self.axes))), dtype=np.float64)) if self.axes else values

    def _missing(self, values: NDArray) -> NDArray:
        """Where there is no token: values is [.., L, K] or [.., L]."""
        if values.ndim == self.entropy.ndim:
            return np.zeros(values.shape, bool)
        return np.broadcast_to((self.tokens < 0)[..., None, :], values.shape)

    def text(self, token: int) -> str:
        """A token as text; its number if the model has no tokenizer."""
        return str(int(token)) if self.tokenizer is None else self.tokenizer.decode([int(token)])

    def to_dataframe(self, *, top: bool = False) -> pd.DataFrame:
        """One line per (example, position,) layer and token: token, text, logit, probability, rank, entropy.

        top: the likeliest tokens instead: rank, token, text, probability.
        """
        import pandas as pd

        values = self.top_ids if top else self.logits
        grid = np.indices(values.shape).reshape(values.ndim, -1)
        lead = tuple(grid[: len(self.axes)])
        frame: dict[str, Any] = dict(zip(self.axes, lead, strict=True))
        if "position" in frame:
            frame["position"] = self.positions[lead]
        frame["layer"] = grid[-2]
        if top:
            frame["rank"], token = grid[-1], self.top_ids.ravel()
        else:
            token = self.tokens[(*lead, grid[-1])]
        names = {t: self.text(t) if t >= 0 else "-" for t in np.unique(token).tolist()}
        frame["token"], frame["text"] = token, [names[t] for t in token.tolist()]
        if top:
            frame["probability"] = self.top_probabilities.ravel()
        else:
            frame |= {"logit": self.logits.ravel(), "probability": self.probabilities.ravel(), "rank": self.ranks.ravel()}
            frame["entropy"] = np.broadcast_to(self.entropy[..., None], self.logits.shape).ravel()
        return pd.DataFrame(frame)

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset with named axes: (example, position,) layer, token, choice."""
        lead = (*self.axes, "layer")
        data: dict[str, Any] = {name: ((*lead, "token"), getattr(self, name)) for name in ("logits", "probabilities", "ranks")}
        data["entropy"] = (lead, self.entropy)
        data |= {name: ((*lead, "choice"), getattr(self, name)) for name in ("top_ids", "top_probabilities")}
        data["tokens"] = ((*self.axes, "token"), self.tokens)
        coords: dict[str, Any] = {"layer": self.layers, "token": np.array(self.labels, dtype=object)}
        label_positions(self.axes, self.positions, coords, data)
        if self.prompt is not None and "position" in coords:
            coords["text"] = (("position",), [self.text(int(self.prompt[q])) for q in coords["position"].tolist()])
        units = {"logits": "logit", "probabilities": "probability", "entropy": "nat", "top_probabilities": "probability"}
        attrs = {"title": _TITLE, "model": self.model_name, "site": self.site, "source": "docs/lens.md"}
        return Arrays(data=data, coords=coords, units=units, attrs=attrs).dataset()

    def view(self) -> View:
        """Of 2 to 40 positions of one example the likeliest token of each layer; otherwise the probability of each token that
        is followed, averaged over examples and positions."""
        facts = (f"{self.model_name}: final norm and unembedding of {self.site} of each layer",)
        go_on = (("lens.to_dataframe(top=True)", "the likeliest tokens of each layer"),)
        if not self._fills_a_grid():
            return View(
                title=_TITLE, values=self.mean(self.probabilities), axes=("layer", "token"), share=True,
                label="probability", labels={"token": [repr(label) for label in self.labels]},
                beside={"rank": self.mean(self.ranks)}, by_size=False, facts=facts, go_on=go_on,
            )  # fmt: skip
        ids, positions = self.top_ids[..., 0], self.positions.reshape(-1)  # [R, L]
        words = {} if self.prompt is None else {"position": [repr(self.text(self.prompt[q])) for q in positions]}
        said = np.vectorize(lambda token: repr(self.text(token)), otypes=[object])(ids)
        return View(
            title="What each layer would say next", values=self.top_probabilities[..., 0], axes=("position", "layer"),
            label="probability of the likeliest token", labels={"position": positions.tolist()}, words=words, share=True,
            beside={"likeliest token": said}, by_size=False, facts=facts, go_on=go_on,
        )  # fmt: skip

    def _fills_a_grid(self) -> bool:
        """Whether there are positions of one example that fit into a figure side by side."""
        several = "position" in self.axes and "example" not in self.axes
        return several and 2 <= self.positions.shape[-1] <= 40 and self.top_ids.shape[-1] > 0

    def plot(
        self,
        *,
        kind: Literal["curves", "grid"] | None = None,
        example: int = 0,
        title: str | None = None,
        path: str | PathLike | None = None,
    ) -> Figure:
        """curves: the probability of each followed token over the layers, averaged over examples and positions.
        grid: what each layer would say at each position of one example, coloured by its probability. None: the grid where
        there are 2 to 40 positions of one example, else curves. Returns the matplotlib figure, saved to `path` if given.
        """
        from pycotmech.lens.plots import averaged, curves_figure, grid_figure

        several = "position" in self.axes
        check_choice("kind", kind, ("curves", "grid", None))
        if kind == "grid" and not (several and self.top_ids.shape[-1]):
            raise ValueError("kind: a grid needs a list of positions and top_k of at least 1; expected 'curves'")
        if kind is None:
            kind = "grid" if self._fills_a_grid() else "curves"
        if kind == "curves":
            return curves_figure(
                self.layers,
                self.mean(self.probabilities),
                self.mean(self.entropy),
                self.labels,
                site=self.site,
                title=title or _TITLE,
                lines=[f"{self.model_name}; {averaged(self.tokens.shape, self.axes)}logit lens of {self.site}"],
                path=path,
            )
        at = example if "example" in self.axes else ...
        ids, p = self.top_ids[at][..., 0], self.top_probabilities[at][..., 0]  # [R, L]
        positions = self.positions[at].reshape(-1)
        return grid_figure(
            p,
            [[self.text(token) for token in row] for row in ids],
            [str(q) if self.prompt is None else self.text(self.prompt[q]) for q in positions],
            site=self.site,
            of_text=self.prompt is not None,
            title=title or "What each layer would say next",
            lines=[f"{self.model_name}; likeliest token by the logit lens of {self.site}"],
            path=path,
        )

    def __str__(self) -> str:
        over = " x ".join(plural(n, axis) for n, axis in zip(self.entropy.shape, self.axes, strict=False))
        lines = [
            f"{self.model_name}: logit lens of {self.site}, {len(self.layers)} entries"
            + (f", mean over {over}" if over else "")
        ]
        p, ranks, entropy = self.mean(self.probabilities), self.mean(self.ranks), self.mean(self.entropy)
        lines.append("  layer  " + "  ".join(f"{self._short(label):>20}" for label in self.labels) + "   entropy")
        for l in self.layers:
            cells = [f"p {p[l, k]:.3f}, rank {ranks[l, k]:.4g}" for k in range(len(self.labels))]
            lines.append(f"  {l:>5}  " + "  ".join(f"{cell:>20}" for cell in cells) + f"   {entropy[l]:7.3f}")
        return "\n".join(lines)

    @staticmethod
    def _short(label: str) -> str:
        name = repr(label)
        return name if len(name) <= 20 else name[:17] + "..."

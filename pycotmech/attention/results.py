"""What a summary of attention returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pycotmech._choices import did_you_mean, shortened
from pycotmech.display import Arrays, Displayed, View

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_TITLE = "Where each head looks"
_SHARES = ("mass", "largest", "sink", "top_weights")
_ROW_STATISTICS = ("entropy", "lse", "largest", "sink")


@dataclass(frozen=True, eq=False)
class AttentionSummary(Displayed):
    """Where every head of every layer attends, without the T x T patterns.

    L layers, H heads, R query rows, G segments, T tokens (keys), k top keys. A batch has a leading axis B.
    Statistics are float32 (float64 for a float64 model); a statistic that was not requested is None.
    A row that sees no key (padding): lse -inf, entropy and masses 0, top key -1.
    """

    mass: NDArray
    """[L, H, R, G]: the share of a row's attention on the keys of each segment, of which a sink takes its own (`sink`)."""
    segment_names: tuple[str, ...]
    entropy: NDArray | None
    """[L, H, R], nats: the sum over the keys of -p ln p."""
    lse: NDArray
    """[L, H, R]: natural log of the sum of exponentials of the scaled scores (and the sink); a single weight is
    exp(score - lse)."""
    largest: NDArray
    """[L, H, R]: the largest weight of the row."""
    top_keys: NDArray[np.int32]
    """[L, H, R, k]: positions of the heaviest keys, descending, ties to the lowest; -1 where a row sees fewer."""
    top_weights: NDArray
    """[L, H, R, k]: their weights; 0 where top_keys is -1."""
    received: NDArray | None
    """[L, H, T]: the attention that each key gets, summed over the R rows."""
    read: NDArray | None
    """[L, H, R, C]: the readout's features averaged with the weights."""
    rows: NDArray[np.int64]
    """[R]: the positions of the query rows."""
    tokens: NDArray[np.int64] | None
    """[T], or [B, T] for a batch; None where the token ids were not seen (a captured forward pass)."""
    labels: NDArray[np.int32] = field(repr=False)
    """[T] or [B, T]: the segment of each key, an index of segment_names, or -1."""
    model_name: str = ""
    sink: NDArray | None = None
    """[L, H, R]: the share of a row's attention that its head's sink takes, a learned logit without a value; None for models
    without sinks. No segment has it: where segments hold every key, the masses of a row and its sink add up to 1."""

    @property
    def batched(self) -> bool:
        return self.mass.ndim == 5

    def segment(self, name: str) -> NDArray:
        """mass[..., g] of one segment by its name: [L, H, R]."""
        return self.mass[..., self._segment(name)]

    def per_head(self, *, rows: slice | Sequence[int] | None = None) -> pd.DataFrame:
        """One line per head, averaged over the query rows (and the batch): mass_<segment>, entropy, largest.

        rows: which of the summary's rows to average, as an index into the R axis; None: all.
        """
        import pandas as pd

        L, H = self.mass.shape[-4:-2]
        layer, head = np.indices((L, H)).reshape(2, -1)
        frame = pd.DataFrame({"layer": layer, "head": head})
        mass = self.over_rows(self.mass, rows)
        for g, name in enumerate(self.segment_names):
            frame[f"mass_{name}"] = mass[..., g].ravel()
        for name in ("entropy", "largest", "sink"):
            if (values := getattr(self, name)) is not None:
                frame[name] = self.over_rows(values[..., None], rows).ravel()
        return frame

    def per_token(self, texts: Iterable[str] | None = None) -> pd.DataFrame:
        """One line per token of one prompt: position, token, text, segment, received.

        received: the attention that the token receives, averaged over heads and over those of the summary's rows that see it;
            NaN if none does. texts: of the tokens; None: no such column. Columns of what the summary does not hold (token ids,
            attention received) are left out. Raises ValueError for a batch.
        """
        import pandas as pd

        if self.batched:
            raise ValueError(f"per_token: got a summary of {len(self.mass)} prompts; expected one of a single prompt")
        columns: dict[str, object] = {"position": np.arange(len(self.labels))}
        if self.tokens is not None:
            columns["token"] = self.tokens
        if texts is not None:
            columns["text"] = list(texts)
        columns["segment"] = ["" if g < 0 else self.segment_names[g] for g in self.labels]
        if self.received is not None:
            columns["received"] = self.received_per_row().mean((0, 1))
        return pd.DataFrame(columns)

    def received_per_row(self) -> NDArray:
        """[.., L, H, T]: `received` divided by the number of the summary's rows that see the key; NaN if none does.

        Raises ValueError if `received` was not requested.
        """
        if self.received is None:
            raise ValueError("received: was not requested of attention_summary; expected received=True")
        seen_by = (self.rows[:, None] >= np.arange(self.received.shape[-1])).sum(0)
        return self.received / np.where(seen_by > 0, seen_by, np.nan)

    def over_rows(self, values: NDArray, rows: slice | Sequence[int] | None) -> NDArray:
        """[.., L, H, R, n] -> [L, H, n]: the mean over rows, and over the batch if there is one."""
        index = slice(None) if rows is None else rows if isinstance(rows, slice) else list(rows)
        chosen = values[..., index, :]
        if chosen.shape[-2] == 0:
            raise ValueError(f"rows: {rows} chooses none of the summary's {len(self.rows)} rows")
        mean = chosen.mean(axis=-2, dtype=np.float64)
        return mean.mean(axis=0) if self.batched else mean

    def to_dataframe(self) -> pd.DataFrame:
        """One line per (example,) layer, head and row: position, the row's statistics, its top key, mass_<segment>."""
        import pandas as pd

        names = ["example", "layer", "head", "row"][-len(self.lse.shape) :]
        grid = dict(zip(names, np.indices(self.lse.shape, dtype=np.int32).reshape(len(names), -1), strict=True))
        row = grid.pop("row")
        frame = pd.DataFrame({**grid, "position": self.rows[row]})
        for name in _ROW_STATISTICS:
            if (values := getattr(self, name)) is not None:
                frame[name] = values.ravel()
        if self.top_keys.shape[-1]:
            frame["top_key"], frame["top_weight"] = self.top_keys[..., 0].ravel(), self.top_weights[..., 0].ravel()
        for g, name in enumerate(self.segment_names):
            frame[f"mass_{name}"] = self.mass[..., g].ravel()
        return frame

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset with named axes: (example,) layer, head, row, segment, rank, key, feature."""
        head = (*(("example",) if self.batched else ()), "layer", "head")
        axes = {
            "mass": (*head, "row", "segment"),
            "entropy": (*head, "row"),
            "lse": (*head, "row"),
            "largest": (*head, "row"),
            "sink": (*head, "row"),
            "top_keys": (*head, "row", "rank"),
            "top_weights": (*head, "row", "rank"),
            "received": (*head, "key"),
            "read": (*head, "row", "feature"),
            "tokens": ("example", "key") if self.tokens is not None and self.tokens.ndim == 2 else ("key",),
            "labels": ("example", "key") if self.labels.ndim == 2 else ("key",),
        }
        found = {name: (dims, getattr(self, name)) for name, dims in axes.items() if getattr(self, name) is not None}
        return Arrays(
            data={name: pair for name, pair in found.items() if pair[1].size},
            coords={"row": self.rows, "segment": np.array(self.segment_names, dtype=object)},
            units={"entropy": "nat", "lse": "nat"} | dict.fromkeys(_SHARES, "share of a row's attention"),
            attrs={"title": _TITLE, "model": self.model_name, "source": "docs/attention.md"},
        ).dataset()

    def view(self) -> View:
        """The share of attention that each head has on each segment, averaged over rows and examples. Without segments that of
        the heaviest key of each row."""
        L, H, R, G = self.mass.shape[-4:]
        values = self.over_rows(self.mass, None) if G else self.over_rows(self.largest[..., None], None)[..., 0]
        rows = f"row {self.rows[0]}" if R == 1 else f"mean over {R} rows, {self.rows.min()} to {self.rows.max()}"
        beside = {} if self.entropy is None else {"entropy (nat)": self.over_rows(self.entropy[..., None], None)[..., 0]}
        return View(
            title=_TITLE,
            values=values,
            axes=("layer", "head", "segment") if G else ("layer", "head"),
            labels={"segment": list(self.segment_names)} if G else {},
            label="share of attention" if G else "largest weight of a row",
            share=True,
            beside={name: np.broadcast_to(x[..., None], values.shape) if G else x for name, x in beside.items()},
            facts=(f"{self.model_name}: {L} layers x {H} heads, {self.labels.shape[-1]} keys, {rows}".lstrip(": "),),
            go_on=(("summary.per_head()", "a table of heads"), ("summary.segment(name)", "one segment, [L, H, R]")),
        )

    @classmethod
    def from_xarray(cls, data: xr.Dataset) -> AttentionSummary:
        """Makes a summary of what `to_xarray` gave. Raises ValueError naming a variable that is missing."""
        for name in ("lse", "largest", "labels"):
            if name not in data:
                raise ValueError(f"data: has no {name}; expected what AttentionSummary.to_xarray gives")
        lse = data["lse"]
        names = tuple(str(name) for name in data["segment"].values) if "segment" in data.coords else ()

        def found(name: str, *size: int) -> NDArray | None:
            """None for what was not asked for; an empty array for what has no size, which is not stored."""
            if name in data:
                return data[name].values
            return np.empty((*lse.shape, *size), np.int32 if name == "top_keys" else lse.dtype) if size else None

        mass, keys, weights = (found(name, n) for name, n in (("mass", len(names)), ("top_keys", 0), ("top_weights", 0)))
        assert mass is not None and keys is not None and weights is not None
        return cls(
            mass=mass, segment_names=names, entropy=found("entropy"), lse=lse.values, largest=data["largest"].values,
            top_keys=keys, top_weights=weights, received=found("received"), read=found("read"),
            rows=data["row"].values, tokens=found("tokens"), labels=data["labels"].values,
            model_name=str(data.attrs.get("model", "")), sink=found("sink"),
        )  # fmt: skip

    def plot(
        self,
        *,
        segments: Sequence[str] | None = None,
        rows: slice | Sequence[int] | None = None,
        title: str | None = None,
        path: str | PathLike | None = None,
    ):
        """Mass per head, averaged over rows: one heat map (layers upward, heads to the right) for each segment.

        segments: their names; None: all. rows: an index into the R axis. Returns the matplotlib figure, saved to
        `path` if given.
        """
        from pycotmech.figures.heatmap import share_maps_figure

        names = self.segment_names if segments is None else tuple(segments)
        if not names:
            raise ValueError("segments: none is chosen")
        mass = self.over_rows(self.mass, rows)
        maps = {name: mass[..., self._segment(name)] for name in names}
        chosen = self.rows if rows is None else self.rows[rows if isinstance(rows, slice) else list(rows)]
        where = f"row {chosen[0]}" if len(chosen) == 1 else f"mean over {len(chosen)} rows, {chosen.min()} to {chosen.max()}"
        title = title or f"{self.model_name}: attention mass per segment ({where})".lstrip(": ")
        lines = [f"{len(chosen)} rows of {self.labels.shape[-1]} keys; each row's attention on the segment's tokens, averaged"]
        return share_maps_figure(maps, title=title, label="share of attention", lines=lines, path=path)

    def __str__(self) -> str:
        L, H, R, _ = self.mass.shape[-4:]
        text = f"AttentionSummary: {L} layers x {H} heads, {R} rows over {self.labels.shape[-1]} keys"
        if self.batched:
            text += f", {len(self.mass)} examples"
        return f"{text}; segments {', '.join(self.segment_names)}"

    def _segment(self, name: str) -> int:
        if name not in self.segment_names:
            known = self.segment_names
            raise KeyError(f"no segment {name!r}; there are {shortened(known)}{did_you_mean(name, known)}")
        return self.segment_names.index(name)

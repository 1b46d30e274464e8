"""What path patching returns: an effect for each path, labelled by sender, input and receiver."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pycotmech._words import plural
from pycotmech.display import View
from pycotmech.patching.results import Index, Measured, PairResult

Head = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PathSweep(PairResult, Measured):
    """The result of patching one path at a time. B examples, S senders, I inputs, R receivers.

    values float32: [S] if the receivers are the logits, else [I, S, R]; on the scale corrupted 0, clean 1 if normalised
        (over several examples the ratio of means), else the raw metric's mean.
    raw: the metric itself, float64, in the shape of values; of a list of pairs [B, ...].
    effect: the distance from the base run on the scale of `values`, if normalised positive towards the source; taken against
        the mean of the self-patches; 0 where the sender does not lie below the receiver.
    senders, receivers: (layer, head) of the axes; receivers is "logits" if there is no such axis. inputs: "q", "k", "v".
    noise_floor: what rounding may change in an effect, estimated from jittered copies of the base run (docs/design.md,
        Exactness); those of paths to the logits take the direct path, the others run as in `patch_heads`.
    """

    senders: tuple[Head, ...] = field(repr=False)
    receivers: tuple[Head, ...] | Literal["logits"] = field(repr=False)
    inputs: tuple[str, ...]
    frozen_mlps: bool
    per_query_head: bool
    """Whether k and v were replaced as the receiver alone reads them, or for its whole group."""
    n_layers: int
    n_heads: int

    _WIDTH = 24
    _GO_ON = (
        ("paths.from_senders(receiver)", "a map of what reaches one head"),
        ("paths.to_receivers(sender)", "a map of where one head sends it"),
    )

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes of `values` count: ("sender",) or ("input", "sender", "receiver")."""
        return ("sender",) if self.receivers == "logits" else ("input", "sender", "receiver")

    def path(self, sender: Head, receiver: Head | None = None, input: str | None = None, *, of: str = "effect") -> float:
        """The effect (or value) of one path. Raises KeyError for one that was not measured."""
        return float(self._array(of)[self._index(sender, receiver, input)])

    def from_senders(self, receiver: Head | None = None, input: str | None = None, *, of: str = "effect") -> NDArray:
        """[L, H]: the effect of each sender through one receiver (the logits if it is alone); NaN for heads not asked for."""
        index = self._index(None, receiver, input)
        return self._map(self.senders, self._array(of)[index])

    def to_receivers(self, sender: Head, input: str | None = None, *, of: str = "effect") -> NDArray:
        """[L, H]: the effect of one sender through each receiver, by one input; NaN for heads not asked for."""
        if self.receivers == "logits":
            raise ValueError("to_receivers: the logits are the only receiver; from_senders() gives the senders' map")
        i, s, _ = self._index(sender, None, input, any_receiver=True)
        return self._map(self.receivers, self._array(of)[i, s])

    def plot(
        self,
        *,
        receiver: Head | None = None,
        sender: Head | None = None,
        input: str | None = None,
        title: str | None = None,
        path: str | PathLike | None = None,
    ):
        """Heat map of effects, layers upward, heads to the right; a matplotlib figure, saved to `path` if given.

        receiver: of the senders to this one (and `input`). sender: of its receivers. Neither: of the senders, each with
        its strongest path, or its path to the logits.
        """
        from pycotmech.figures.heatmap import effect_figure

        if receiver is not None and sender is not None:
            raise ValueError("receiver, sender: both given; expected one of them, the other is what the map shows")
        if sender is not None:
            grid = self.to_receivers(sender, input)
            what = f"paths from {_label(sender)} to {input or self.inputs[0]} of each head"
        elif receiver is not None or self.receivers == "logits":
            grid = self.from_senders(receiver, input)
            to = "the logits" if receiver is None else f"{input or self.inputs[0]} of {_label(receiver)}"
            what = f"paths from each head to {to}"
        else:
            of = np.abs(np.where(self._possible(), self.effect, 0)).transpose(1, 0, 2).reshape(len(self.senders), -1).argmax(1)
            strongest = np.take_along_axis(self.effect.transpose(1, 0, 2).reshape(len(self.senders), -1), of[:, None], 1)[:, 0]
            grid, what = self._map(self.senders, strongest), "paths between heads: of each sender the strongest"
        lines = [f"{self.model_name}, {plural(len(self.clean_metric), 'pair')}, noise floor {self.noise_floor:.1g}"]
        return effect_figure(
            grid,
            title=title or what,
            lines=lines,
            metric=self.metric,
            direction=self.direction,
            normalised=self.normalized,
            path=path,
        )

    def view(self) -> View:
        """Of paths to the logits a map of the senders; otherwise senders and receivers, a part for each input."""
        found = super().view()
        if self.receivers != "logits":
            return dataclasses.replace(found, called=lambda index: self._place_name(self._place(index)))
        values, beside = (self._map(self.senders, values) for values in (self.effect, self.values))
        return dataclasses.replace(found, values=values, axes=("layer", "head"), labels={}, beside={"value": beside})

    # ---- places ------------------------------------------------------------------------------------------------------

    def _possible(self) -> NDArray[np.bool_]:
        """Whether the sender lies below the receiver."""
        if self.receivers == "logits":
            return super()._possible()
        below = np.array([l for l, _ in self.senders])[:, None] < np.array([l for l, _ in self.receivers])
        return np.broadcast_to(below, self.shape)

    def _place(self, index: tuple[int, ...]) -> tuple:
        """(sender, input, receiver), or (sender,) for the logits."""
        if self.receivers == "logits":
            return (self.senders[index[0]],)
        return (self.senders[index[1]], self.inputs[index[0]], self.receivers[index[2]])

    def _place_name(self, place: tuple) -> str:
        return _label(place[0]) + (f" -> {place[1]} of {_label(place[2])}" if len(place) == 3 else " -> logits")

    def _place_columns(self, where: Index) -> dict[str, Any]:
        """sender_layer, sender_head, (input, receiver_layer, receiver_head)."""
        heads = np.array(self.senders)[where[-1 if self.receivers == "logits" else 1]]
        columns: dict[str, Any] = {"sender_layer": heads[:, 0], "sender_head": heads[:, 1]}
        if self.receivers != "logits":
            to = np.array(self.receivers)[where[2]]
            columns |= {"input": np.array(self.inputs)[where[0]], "receiver_layer": to[:, 0], "receiver_head": to[:, 1]}
        return columns

    def _labels(self) -> dict[str, Any]:
        senders = {"sender": [_label(head) for head in self.senders]}
        if self.receivers == "logits":
            return senders
        return {**senders, "input": list(self.inputs), "receiver": [_label(head) for head in self.receivers]}

    def _more_labels(self) -> dict[str, Any]:
        ends = {"sender": self.senders} | ({} if self.receivers == "logits" else {"receiver": self.receivers})
        return {
            f"{end}_{name}": ((end,), [head[i] for head in heads])
            for end, heads in ends.items()
            for i, name in enumerate(("layer", "head"))
        }

    def _title(self) -> str:
        to = "the logits" if self.receivers == "logits" else f"{', '.join(self.inputs)} of other heads"
        return f"What heads send to {to}, one path at a time ({self.direction})"

    def _heading(self) -> list[str]:
        frozen = "other heads and MLPs frozen" if self.frozen_mlps else "other heads frozen"
        to = (
            "the logits" if self.receivers == "logits" else f"{', '.join(self.inputs)} of {plural(len(self.receivers), 'head')}"
        )
        return [
            f"{self.model_name}: paths from {plural(len(self.senders), 'head')} to {to}, {frozen}, {self.direction}, "
            f"metric {self.metric}",
            f"{self._runs()}, noise floor {self.noise_floor:.2g}",
        ]

    def _index(self, sender: Head | None, receiver: Head | None, input: str | None, *, any_receiver: bool = False) -> tuple:
        """The index of a path in values; a sender of None is all of them."""
        s: Any = slice(None) if sender is None else _find(self.senders, sender, "sender")
        if self.receivers == "logits":
            if receiver is not None or input is not None:
                raise KeyError("receiver, input: the logits are the only receiver of this sweep; expected None")
            return (s,)
        if not input and len(self.inputs) == 1:
            input = self.inputs[0]
        i = _find(self.inputs, input, "input")
        return (i, s, None if any_receiver else _find(self.receivers, receiver, "receiver"))

    def _map(self, heads: tuple[Head, ...], values: NDArray) -> NDArray:
        out = np.full((self.n_layers, self.n_heads), np.nan, dtype=np.float32)
        where = np.array(heads)
        out[where[:, 0], where[:, 1]] = values
        return out


def _find(among: tuple, what: Any, argument: str) -> int:
    what = tuple(what) if isinstance(what, list) else what
    if what not in among:
        known = ", ".join(map(str, among[:8])) + (", ..." if len(among) > 8 else "")
        raise KeyError(f"{argument}: {what!r} is not in this sweep; it has {known}")
    return among.index(what)


def _label(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"

"""What is measured of a circuit: faithfulness, completeness and minimality, beside random sets (docs/protocol.md, E13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech.cot.tools.cells import Cells
from pycotmech.cot.tools.circuit_search import KeptLogits, but, layer_matched, members, nothing, worst_subset
from pycotmech.model import Model


class CircuitValues:
    """The variables of a result while they are made."""

    def __init__(self, model: Model, cells: Cells, n_random: int, n_subsets: int) -> None:
        self.cells, (n, S) = cells, cells.shape
        self.shape = L, H = model.cfg.n_layers, model.cfg.n_heads
        self.f = {name: np.full((n, S), np.nan) for name in ("full", "circuit", "empty", "held_out")}
        self.random = np.full((n_random, n, S), np.nan)
        self.kept, self.subset = np.zeros((S, L, H), bool), np.zeros((n_subsets, S, L, H), bool)
        self.without = {name: np.full((n_subsets, n, S), np.nan) for name in ("circuit_without", "full_without")}
        self.minimality = np.full((n, S, L, H), np.nan)
        self.by_step = {name: np.zeros(S) for name in ("evaluations", "finished", "separate")}

    def write(
        self,
        s: int,
        kept: NDArray[np.bool_],
        finished: bool,
        values: tuple[KeptLogits, KeptLogits],
        rows: tuple[NDArray, NDArray],
        rng: np.random.Generator,
        n_subsets: int,
        n_greedy: int,
    ) -> None:
        """One step: its circuit, evaluated. values: F on the examples to choose on and on those to report on, `rows`."""
        choosing, reporting = values
        heads = members(kept)
        subsets = np.stack([kept & (rng.random(self.shape) < 0.5) for _ in range(n_subsets)])
        random = np.stack([layer_matched(kept, rng) for _ in range(len(self.random))])
        # The K of each head: the empty set or the random subset with which its absence changes most, on the choosing half.
        tried = np.concatenate((nothing(self.shape)[None], subsets))
        own = np.stack([tried & ~(kept & ~but(kept, [v])) for v in heads])  # [heads, tried, L, H]
        with_v, without_v = kept & ~own, np.stack([but(kept, [v]) & ~k for v, k in zip(heads, own, strict=True)])
        change = self._mean(choosing, without_v) - self._mean(choosing, with_v)
        best = np.abs(change).argmax(1)
        if n_greedy:
            subsets = np.concatenate((subsets, worst_subset(choosing, kept, n_greedy)[None]))
        self.kept[s], self.subset[:, s] = kept, subsets
        whole = np.ones(self.shape, bool)
        pick = np.arange(len(heads))
        asked = np.concatenate(
            (whole[None], kept[None], nothing(self.shape)[None], random, kept & ~subsets, whole & ~subsets, with_v[pick, best],
             without_v[pick, best])
        )  # fmt: skip
        cuts = np.cumsum([1, 1, 1, len(random), len(subsets), len(subsets), len(heads)])
        full, circuit, empty, drawn, of_circuit, of_full, with_head, without = np.split(reporting(asked), cuts)
        there = rows[1]
        for name, found in (("full", full), ("circuit", circuit), ("empty", empty)):
            self.f[name][there, s] = found[0]
        self.random[:, there, s] = drawn
        self.without["circuit_without"][:, there, s], self.without["full_without"][:, there, s] = of_circuit, of_full
        for v, changed in zip(heads, without - with_head, strict=True):
            self.minimality[there, s, v[0], v[1]] = changed
        # Of the examples to choose on only F of the three sets is kept, which is known.
        if not np.array_equal(*rows):
            for name, found in zip(("full", "circuit", "empty"), choosing(asked[:3]), strict=True):
                self.f[name][rows[0], s] = found
            self.f["held_out"][rows[0], s] = 0
            self.by_step["separate"][s] = 1
        self.f["held_out"][there, s] = 1
        self.by_step["evaluations"][s], self.by_step["finished"][s] = choosing.evaluations, finished

    @staticmethod
    def _mean(values: KeptLogits, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """masks [a, b, L, H] -> mean F over cells [a, b]."""
        return values(masks.reshape(-1, *masks.shape[2:])).mean(1).reshape(masks.shape[:2])

    def dataset(self) -> xr.Dataset:
        of_heads = ("step", "layer", "head")
        data: dict[str, Any] = dict(self.f)
        data |= {name: ("step", value) for name, value in self.by_step.items()}
        data |= {name: (("subset", "example", "step"), value) for name, value in self.without.items()}
        data |= {
            "random": (("draw", "example", "step"), self.random),
            "kept": (of_heads, self.kept),
            "subset_heads": (("subset", *of_heads), self.subset),
            "minimality": (("example", *of_heads), self.minimality),
        }
        axes = {"draw": len(self.random), "subset": len(self.subset), "layer": self.shape[0], "head": self.shape[1]}
        return self.cells.dataset(data, axes)

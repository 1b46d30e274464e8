"""Means over examples and heads, with intervals for which both are resampled (the pigeonhole bootstrap, Owen 2007).

A difference between layers may come from a few heads with habits of their own that happen to lie in one half of the layers;
more examples would only confirm it. Heads are therefore resampled too, within their layer and independently of the examples.
The interval is conservative: it counts the interaction of examples and heads twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap


@dataclass(frozen=True, eq=False)
class LayerMeans:
    """Means by layer of a quantity over examples and heads, of the data and of resamples.

    top, below [1 + draws, layers]: sums whose ratio is the mean. The first row is that of the data, the others of resamples.
    counts: bool [n, layers], which examples count in a layer.
    """

    top: NDArray[np.float64] = field(repr=False)
    below: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(cls, top: NDArray, below: NDArray, *, heads: bool = True, draws: int = bootstrap.DRAWS, seed: int = 0) -> LayerMeans:
        """Resamples the data.

        top, below [n, layers, heads]: sums of the quantity, and the number of things summed, 0 where nothing counts.
        heads: whether heads are resampled too; otherwise the intervals are about these heads alone.
        Cost: 2 n draws layers heads multiplications.
        """
        n, L, H = top.shape
        examples = np.concatenate([np.ones((1, n)), bootstrap.resampled(n, draws=draws, seed=seed)])
        times = np.ones((1 + draws, L, H))
        if heads:
            times[1:] = np.random.default_rng([seed, 1]).multinomial(H, np.full(H, 1 / H), size=(draws, L))
        above, under = (((examples @ x.reshape(n, -1)).reshape(-1, L, H) * times).sum(-1) for x in (top, below))
        return cls(above, under, np.asarray((below > 0).any(-1)))

    @property
    def curve(self) -> NDArray[np.float64]:
        """The means [layers]; NaN where nothing counts."""
        return self._ratio(self.top[0], self.below[0])

    @property
    def drawn(self) -> NDArray[np.float64]:
        """The means of the resamples [draws, layers]."""
        return self._ratio(self.top[1:], self.below[1:])

    def by_layer(self, *, within: bootstrap.Range | None = None) -> bootstrap.Interval:
        """Returns the mean of each layer with its interval: arrays [layers]."""
        return self.interval(self._ratio(self.top, self.below), self.counts.sum(0), within=within)

    def over(self, layers: slice, *, within: bootstrap.Range | None = None) -> bootstrap.Interval:
        """Returns the mean over all heads of the given layers with its interval."""
        return self.interval(self._over(layers), self._n(layers), within=within)

    def rise(self, first: int, *, within: bootstrap.Range | None = None) -> bootstrap.Interval:
        """Returns the mean over the layers from `first` on minus that over the layers before, with its interval."""
        lower, upper = slice(0, first), slice(first, None)
        n = min(self._n(lower), self._n(upper))
        return self.interval(self._over(upper) - self._over(lower), n, within=within)

    def interval(
        self, values: NDArray, n: int | NDArray | None = None, *, within: bootstrap.Range | None = None
    ) -> bootstrap.Interval:
        """Returns the interval of any statistic of the rows.

        values [1 + draws, ...]: the statistic of the data, then of each resample. n: number of examples; None: all that count
            in any layer.
        """
        n = self._n(slice(None)) if n is None else n
        number = np.broadcast_to(np.asarray(n), values.shape[1:])
        ends = bootstrap.widened(values[0], *bootstrap.percentiles(values[1:]), number, within=within)
        ends = bootstrap.with_width(values[0], *ends, number, within=within)
        return bootstrap.Interval(np.asarray(values[0]), *ends, number)

    def _over(self, layers: slice) -> NDArray[np.float64]:
        return self._ratio(self.top[:, layers].sum(-1), self.below[:, layers].sum(-1))

    def _n(self, layers: slice) -> int:
        return int(self.counts[:, layers].any(-1).sum())

    @staticmethod
    def _ratio(top: NDArray, below: NDArray) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(below > 0, top / np.where(below > 0, below, 1.0), np.nan)

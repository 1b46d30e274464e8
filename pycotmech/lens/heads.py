"""What `head_logits` returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.display import Arrays, Displayed, View
from pycotmech.lens.request import token_text
from pycotmech.lens.results import label_positions
from pycotmech.model.arguments import check_integer

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from pycotmech.model import Model

_NORMS = {
    "final": "the final norm's factor of the run: parts add up to the logit",
    "own": "each part normalised by itself: parts do not add up",
    "none": "without the final norm",
}


@dataclass(frozen=True)
class Parts:
    """What is kept of the N rows, so that a head's whole vocabulary can be asked for later. All on the CPU."""

    z: Tensor  # [L, N, H, D]
    factor: Tensor  # [N, 1]: 1 / root mean square of the final row
    ids: Tensor  # [N, K]


@dataclass(frozen=True, eq=False)
class HeadLogits(Displayed):
    """Direct contributions to logits. L layers, H heads, K tokens; first the `axes`: "example" and "position" where there are
    several. Float32 (float64 for a float64 model).

    heads [.., L, H, K]: of each head's z W_O. mlps [.., L, K]. embedding [.., K]. bias [.., K]: of the output projections'
    and the unembedding's biases; None if there are none (and with "own", where biases belong to no part).
    total [.., K]: the model's own logits. With normalization "final" the parts add up to it: `rounding` is what is missing.
    tokens [.., K]: ids. labels: a name for each of the K. positions: of the rows, counted from the front.
    """

    heads: NDArray
    mlps: NDArray
    embedding: NDArray
    bias: NDArray | None
    total: NDArray
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    axes: tuple[str, ...]
    labels: tuple[str, ...]
    normalization: str
    model_name: str
    compared: bool = False
    """Whether the second token is what `wrong` named."""
    _model: Model | None = field(default=None, repr=False)
    _parts: Parts | None = field(default=None, repr=False)

    @property
    def parts(self) -> NDArray:
        """The sum of all parts, [.., K]."""
        found = self.heads.sum((-3, -2), dtype=np.float64) + self.mlps.sum(-2, dtype=np.float64) + self.embedding
        return found if self.bias is None else found + self.bias

    @property
    def rounding(self) -> NDArray:
        """total minus the sum of all parts, [.., K]: rounding with normalization "final", meaningless with the others."""
        return self.total - self.parts

    @property
    def difference(self) -> HeadLogits:
        """The same for logit(answer) - logit(wrong): one token, labelled "answer - wrong". ValueError without `wrong`."""
        if not self.compared:
            raise ValueError("difference: head_logits was called without wrong, so there is nothing to compare with")
        fields = ("heads", "mlps", "embedding", "bias", "total")
        less = {n: None if (x := getattr(self, n)) is None else x[..., :1] - x[..., 1:] for n in fields}
        label = " - ".join(label.strip() for label in self.labels)
        return dataclasses.replace(
            self, **less, tokens=self.tokens[..., :1], labels=(label,), compared=False, _model=None, _parts=None
        )

    def mean(self, values: NDArray, token: int = 0) -> NDArray:
        """One of the K tokens, averaged over examples and positions: heads -> [L, H], mlps -> [L]."""
        chosen = values[..., token]
        return np.asarray(np.nanmean(chosen, axis=tuple(range(len(self.axes))), dtype=np.float64)) if self.axes else chosen

    def top(self, k: int = 10, *, token: int = 0) -> list[tuple[tuple[int, int], float]]:
        """The k heads with the largest |contribution| to a token, averaged over examples and positions."""
        grid = self.mean(self.heads, token)
        order = np.argsort(-np.abs(np.nan_to_num(grid)), axis=None, kind="stable")[:k]
        return [((int(l), int(h)), float(grid[l, h])) for l, h in zip(*np.unravel_index(order, grid.shape), strict=True)]

    # ---- the whole vocabulary --------------------------------------------------------------------------------------

    def top_tokens(self, k: int = 5) -> tuple[NDArray[np.int64], NDArray]:
        """What each head writes: the k tokens that it raises most, over the whole vocabulary.

        Returns ids and contributions, both [.., L, H, k], descending, normalised as the result is; ties in any order.
        Cost: L H rows through the unembedding for each position, 64 MiB of logits at a time; reads the model's weights.
        """
        V = self._source()[0].cfg.d_vocab
        check_integer(k, "k", 1, V)
        best = self._over_vocabulary(lambda logits, ids: torch.cat([t.double() for t in logits.topk(k)], -1), 2 * k)
        return best[..., k:].astype(np.int64), best[..., :k].astype(self.heads.dtype)

    def probabilities(self) -> NDArray:
        """Softmax over the vocabulary of what each head writes, at the tokens: [.., L, H, K] ("own": docs/protocol.md, E8).

        Cost: as `top_tokens`.
        """

        def chosen(logits: Tensor, ids: Tensor) -> Tensor:
            known = ids.to(logits.device)
            found = torch.exp(logits.gather(1, known.clamp_min(0)) - logits.logsumexp(-1, keepdim=True))
            return found.masked_fill(known < 0, torch.nan)

        return self._over_vocabulary(chosen, self.tokens.shape[-1]).astype(self.heads.dtype)

    def _source(self) -> tuple[Model, Parts]:
        if self._model is None or self._parts is None:
            raise ValueError("head_logits: a difference of tokens has no vocabulary; call this on the result that it came from")
        return self._model, self._parts

    @torch.no_grad()
    def _over_vocabulary(self, of, width: int) -> NDArray:
        """of(logits [n, V], ids [n, K]) -> [n, width], for every head of every row: [.., L, H, width]."""
        from pycotmech.lens.readout import VALUES, LogitReadout

        model, parts = self._source()
        family, readout = model.family, LogitReadout(model.family)
        L, N, H, _ = parts.z.shape
        # Ids and values share a table: float64 holds both exactly.
        out = torch.empty(N, L, H, width, dtype=torch.float64)
        step = max(1, VALUES // (H * model.cfg.d_model))
        for a in range(0, N, step):
            b = min(a + step, N)
            factor = parts.factor[a:b, None].to(family.device)
            ids = parts.ids[a:b].repeat_interleave(H, 0)
            flat = torch.empty((b - a) * H, width, dtype=torch.float64)
            for l in range(L):
                written = readout.normalised(family.head_out(l, parts.z[l, a:b].to(family.device)), self.normalization, factor)
                for (i, j), logits in readout.vocabulary(written.flatten(0, 1)):
                    flat[i:j] = of(logits, ids[i:j]).cpu()
                out[a:b, l] = flat.view(b - a, H, width)
        lead = self.heads.shape[: len(self.axes)]
        found = out.unflatten(0, lead) if lead else out[0]
        return found.numpy()

    # ---- display --------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """One line per part and token: (example, position,) part ("head", "mlp", "embedding", "bias", "rounding"), layer, head
        (missing where a part has none), token, text, logit."""
        import pandas as pd

        lead, K = self.heads.shape[: len(self.axes)], self.tokens.shape[-1]
        frames = []
        parts = {"head": self.heads, "mlp": self.mlps, "embedding": self.embedding, "bias": self.bias}
        if self.normalization == "final":
            parts["rounding"] = self.rounding
        for part, values in parts.items():
            if values is None:
                continue
            grid = np.indices(values.shape).reshape(values.ndim, -1)
            frame = {name: grid[i] for i, name in enumerate(self.axes)}
            if "position" in frame:
                at = tuple(grid[i] for i in range(len(lead)))
                frame["position"] = (
                    self.positions[at] if self.positions.ndim == len(lead) else self.positions[frame["position"]]
                )
            frame["part"] = part
            inner = values.ndim - len(lead) - 1
            frame["layer"] = pd.array(grid[len(lead)] if inner else [pd.NA] * grid.shape[1], dtype="Int64")
            frame["head"] = pd.array(grid[len(lead) + 1] if inner == 2 else [pd.NA] * grid.shape[1], dtype="Int64")
            token = self.tokens[(*(grid[i] for i in range(len(lead))), grid[-1])]
            frame["token"], frame["text"] = token, [self._text(int(t), k) for t, k in zip(token, grid[-1] % K, strict=True)]
            frame["logit"] = values.ravel()
            frames.append(pd.DataFrame(frame))
        return pd.concat(frames, ignore_index=True)

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset with named axes, (example, position,) layer, head, token: heads, mlps, embedding, total,
        tokens (ids), and bias where there is one. Attributes: model, normalization."""
        L, H = self.heads.shape[-3:-1]
        inner = {"heads": ("layer", "head"), "mlps": ("layer",), "embedding": (), "bias": (), "total": (), "tokens": ()}
        data: dict[str, Any] = {
            name: ((*self.axes, *dims, "token"), getattr(self, name))
            for name, dims in inner.items()
            if getattr(self, name) is not None
        }
        labels = np.array(self.labels, dtype=object)
        coords: dict[str, Any] = {"layer": np.arange(L), "head": np.arange(H), "token": labels}
        label_positions(self.axes, self.positions, coords, data)
        attrs = {"title": "Direct contributions of heads and MLPs to logits", "model": self.model_name}
        attrs |= {"normalization": self.normalization, "source": "docs/lens.md"}
        units = dict.fromkeys((name for name in data if name in inner and name != "tokens"), "logit")
        return Arrays(data=data, coords=coords, units=units, attrs=attrs).dataset()

    def view(self) -> View:
        """What each head adds to the logit of each token, averaged over examples and positions."""
        names = [repr(label) for label in self.labels]
        found = np.stack([self.mean(self.heads, k) for k in range(len(names))])  # [K, L, H]
        one = len(names) == 1
        return View(
            title=f"What each head writes towards {' and '.join(names[:3])}{' …' if len(names) > 3 else ''}",
            values=found[0] if one else found, axes=("layer", "head") if one else ("token", "layer", "head"),
            labels={} if one else {"token": names}, label="contribution to the logit",
            facts=tuple(line.strip() for line in str(self).splitlines()[: 1 + 2 * len(names)]),
            go_on=(("result.top_tokens(5)", "what each head writes, over the whole vocabulary"),),
        )  # fmt: skip

    def _text(self, token: int, k: int) -> str:
        return self.labels[k] if self._model is None else token_text(self._model, token)

    def plot(self, *, token: int = 0, title: str | None = None, path: str | PathLike | None = None) -> Figure:
        """Heat map of the heads, layers upward, next to a bar for each layer's MLP; averaged over examples and positions.

        Returns the matplotlib figure, saved to `path` if given.
        """
        from pycotmech.lens.plots import averaged, heads_figure

        heads, mlps = self.mean(self.heads, token), self.mean(self.mlps, token)
        constant = f"embedding {self._mean(self.embedding, token):+.2f}, sum of heads {heads.sum():+.2f}, "
        lines = [
            f"{self.model_name}; {averaged(self.tokens.shape, self.axes)}{_NORMS[self.normalization]}",
            constant + f"sum of MLPs {mlps.sum():+.2f}; the model's logit {self._mean(self.total, token):+.2f}",
        ]
        title = title or f"What writes {self.labels[token]!r}"
        return heads_figure(heads, mlps, self.top(8, token=token), title=title, lines=lines, path=path)

    def __str__(self) -> str:
        L, H, K = self.heads.shape[-3:]
        over = " x ".join(plural(n, a) for n, a in zip(self.heads.shape, self.axes, strict=False))
        lines = [
            f"{self.model_name}: direct contributions to logits, {L} layers x {H} heads"
            + (f", mean over {over}" if over else "")
        ]
        lines[0] += {"final": "", "own": ", each part normalised by itself", "none": ", without the final norm"}[
            self.normalization
        ]
        for k in range(K):
            name = repr(self.labels[k])
            given = f"embedding {self._mean(self.embedding, k):+.3f}, heads {self.mean(self.heads, k).sum():+.3f}, "
            given += f"MLPs {self.mean(self.mlps, k).sum():+.3f}"
            if self.bias is not None:
                given += f", biases {self._mean(self.bias, k):+.3f}"
            lines.append(f"  {name}: logit {self._mean(self.total, k):+.3f}; {given}")
            best = ", ".join(f"L{l}H{h} {value:+.3f}" for (l, h), value in self.top(6, token=k))
            lines.append(f"    largest heads: {best}")
        return "\n".join(lines)

    def _mean(self, values: NDArray, token: int) -> float:
        return float(np.nanmean(values[..., token]))

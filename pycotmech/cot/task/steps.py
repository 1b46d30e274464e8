"""Which steps a model gets right, by teacher forcing: every token of the word is the arg-max with the gold text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import BoolTensor, LongTensor, Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.task.examples import Example, Examples, StepKind
from pycotmech.display import Arrays, Displayed, View

if TYPE_CHECKING:
    import pandas
    import xarray as xr

Predict = Callable[[LongTensor], Tensor]
Side = Literal["clean", "corrupted"]


@dataclass(frozen=True, eq=False)
class Graded(Displayed):
    """What a model gets right.

    right: bool [n, steps]. label_right: bool [n], or None for corrupted prompts, which end before the label.
    side: "clean" or "corrupted". kinds: of the steps.
    """

    right: BoolTensor
    label_right: BoolTensor | None
    side: Side
    kinds: tuple[StepKind, ...]

    @property
    def share(self) -> Tensor:
        """Share of examples right, by step: float64 [steps]."""
        return self.right.double().mean(0)

    @property
    def all_right(self) -> BoolTensor:
        """Whether all steps of an example are right, label not counted: bool [n]."""
        return self.right.all(1)  # type: ignore[return-value]

    def by_kind(self) -> dict[str, float]:
        """Share right by kind of step, all its steps and examples pooled."""
        return {
            kind: self.right[:, [i for i, k in enumerate(self.kinds) if k == kind]].double().mean().item()
            for kind in dict.fromkeys(self.kinds)
        }

    def view(self) -> View:
        """The share of examples right at each step."""
        right = self.right.sum(0).numpy()
        return View(
            title=f"Steps that the model gets right ({self.side} prompts)",
            values=self.share.numpy(),
            axes=("step",),
            label="share right",
            words={"step": self.kinds},
            share=True,
            beside={"right": right, "of": np.full(len(right), len(self.right))},
            by_size=False,
            facts=tuple(f"{kind}: {share:.1%}" for kind, share in self.by_kind().items()),
        )

    def to_xarray(self) -> xr.Dataset:
        """right [example, step], and label_right [example] where the label was graded."""
        data: dict[str, Any] = {"right": (("example", "step"), self.right.numpy())}
        if self.label_right is not None:
            data["label_right"] = (("example",), self.label_right.numpy())
        coords = {"step": np.arange(len(self.kinds)), "kind": (("step",), list(self.kinds))}
        attrs = {"title": self.view().title, "side": self.side, "source": "docs/task.md"}
        return Arrays(data=data, coords=coords, attrs=attrs).dataset()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per step: step, kind, right (count), n, share."""
        import pandas as pd

        n = len(self.right)
        rows = [
            {"step": i, "kind": kind, "right": count, "n": n, "share": count / n}
            for i, (kind, count) in enumerate(zip(self.kinds, self.right.sum(0).tolist(), strict=True))
        ]
        return pd.DataFrame(rows, columns=["step", "kind", "right", "n", "share"])

    def __str__(self) -> str:
        n = len(self.right)
        lines = [f"{self.side} prompts, n = {n}", "step  kind       share right"]
        lines += [f"{i:4d}  {kind:<9}  {share:6.1%}" for i, (kind, share) in enumerate(zip(self.kinds, self.share))]
        lines.append(f" all steps       {self.all_right.double().mean().item():6.1%}")
        if self.label_right is not None:
            lines.append(f" True or False   {self.label_right.double().mean().item():6.1%}")
        return "\n".join(lines)


def _predicted(predict: Predict, ids: LongTensor) -> Tensor:
    out = predict(ids)
    if not isinstance(out, Tensor):
        raise TypeError(f"predict must return a tensor, got {type(out).__name__}")
    if out.shape != ids.shape or out.dtype.is_floating_point or out.dtype == torch.bool:
        raise ValueError(
            f"predict must return the arg-max next token of each of {len(ids)} positions as integers [{len(ids)}], "
            f"got {out.dtype} {tuple(out.shape)}"
        )
    return out.to(ids.device)


def _hits(predicted: Tensor, ids: LongTensor, span: slice) -> bool:
    return bool((predicted[span.start - 1 : span.stop - 1] == ids[span]).all())


def graded(examples: Sequence[Example], predict: Predict, *, side: Side = "clean") -> Graded:
    """Grade every step of the examples.

    predict: from token ids [T] (LongTensor) to the arg-max next token at every position [T] (integers).
    side: "clean" grades the solutions as they are, with one call of predict per example. "corrupted" grades each step's
    counterfactual, whose right word is `wrong_tokens`, with one call per step.

    A word that begins the text (no shots, no BOS, nothing before it) cannot be predicted; no style has one.
    """
    check_choice("side", side, ("clean", "corrupted"))
    if len(examples) == 0:
        raise ValueError("examples must not be empty")
    counts = {len(example.steps) for example in examples}
    if len(counts) != 1:
        raise ValueError(f"examples must have one number of steps, got {sorted(counts)}")
    right, labels = [], []
    for example in examples:
        if side == "clean":
            ids = example.full_ids
            predicted = _predicted(predict, ids)
            right.append([_hits(predicted, ids, step.answer_span) for step in example.steps])
            labels.append(_hits(predicted, ids, example.label_span))
            continue
        row = []
        for step in example.steps:
            word = torch.tensor(step.wrong_tokens)
            ids = torch.cat([step.corrupted, word])
            row.append(_hits(_predicted(predict, ids), ids, step.answer_span))  # type: ignore[arg-type]
        right.append(row)
    return Graded(
        right=torch.tensor(right),  # type: ignore[arg-type]
        label_right=torch.tensor(labels) if side == "clean" else None,  # type: ignore[arg-type]
        side=side,
        kinds=tuple(step.kind for step in examples[0].steps),
    )


def select(examples: Examples, right: Graded | Tensor, *, step: int | None = None, n: int | None = None) -> Examples:
    """The examples that are right at a step.

    right: what `graded` returned, or bool [n, steps]. To ask for clean and corrupted: `a.right & b.right`.
    step: which step; None: all steps. n: at most so many, the first ones; None: all.
    """
    table: Any = right.right if isinstance(right, Graded) else right
    if not isinstance(table, Tensor) or table.dtype != torch.bool:
        got = f"{table.dtype} tensor" if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"right must be Graded or a bool tensor [n, steps], got {got}")
    steps = examples.n_steps
    if table.shape != (len(examples), steps):
        raise ValueError(f"right must be [{len(examples)}, {steps}] for these examples, got {tuple(table.shape)}")
    if step is not None and not 0 <= step < steps:
        raise ValueError(f"step must be in 0 .. {steps - 1}, got {step}")
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    keep = table.all(1) if step is None else table[:, step]
    chosen = [example for example, good in zip(examples, keep.tolist(), strict=True) if good]
    return examples.only(chosen if n is None else chosen[:n])

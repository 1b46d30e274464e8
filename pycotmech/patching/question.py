"""What every sweep over pairs of prompts is asked: the pairs, the direction, the metric and what it may use, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.engine.bases import common_prefix
from pycotmech.engine.budget import Budget
from pycotmech.engine.evaluate import Evaluator, Ticker
from pycotmech.engine.metrics import Metric, check_metric
from pycotmech.engine.planner import Plan, memory_budget
from pycotmech.model.arguments import check_progress, check_seed
from pycotmech.model.families.base import Family
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.prompts import Tokens
from pycotmech.patching.pairs import Pair, make_pairs
from pycotmech.patching.scale import Scale

if TYPE_CHECKING:
    from pycotmech.model import Model

Direction = Literal["denoise", "noise"]

Progress = Callable[[int, int], None]
"""Called with (token-forwards done, in all)."""


class QuestionOptions(TypedDict, total=False):
    """The options that all questions about pairs have in common, as `patch_heads` describes them."""

    direction: Direction
    metric: Metric
    answer: int | str | Sequence[int | str] | None
    wrong: int | str | Sequence[int | str] | None
    normalize: bool
    read: int | Sequence[int]
    memory_gb: float | None
    seed: int
    progress: Progress | None


class PairOptions(QuestionOptions, total=False):
    """The options that all sweeps over pairs have in common."""

    return_logits: bool


@dataclass(frozen=True)
class PairQuestion:
    """B checked pairs, and what is asked of them.

    single: whether one pair was given rather than a list.
    """

    family: Family
    prefixes: Prefixes
    model_name: str
    pairs: list[Pair]
    single: bool
    direction: Direction
    metric: Metric
    normalize: bool
    budget: Budget
    seed: int
    progress: Progress | None
    tokenizer: Any = None

    @property
    def metric_name(self) -> str:
        return check_metric(self.metric, 0, 0)

    @cached_property
    def shared(self) -> Tensor:
        """The tokens that all prompts begin with, up to where they are read."""
        prompts = [t[: p.read + 1] for p in self.pairs for t in (p.clean, p.corrupted)]
        return prompts[0][: common_prefix(prompts)]

    def prompts(self, numbers: Iterable[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Base and source prompts of these pairs, up to where they are read."""
        pairs = [self.pairs[i] for i in numbers]
        clean, corrupted = [p.clean[: p.read + 1] for p in pairs], [p.corrupted[: p.read + 1] for p in pairs]
        return (corrupted, clean) if self.direction == "denoise" else (clean, corrupted)

    def token_texts(self, which: Sequence[int]) -> tuple[str, ...] | None:
        """The tokens of a pair's clean prompt as texts. which: numbers of pairs. None for several, or without a tokenizer."""
        if self.tokenizer is None or len(which) != 1:
            return None
        return tuple(self.tokenizer.decode([token]) for token in self.pairs[which[0]].clean.tolist())

    def evaluator(self, plan: Plan) -> Evaluator:
        ticker = Ticker(self.progress, plan, self.family.cfg.n_layers)
        return Evaluator(self.family, self.budget.room, self.budget.keep_logits, ticker)

    def scale(self, clean: Tensor, corrupted: Tensor) -> Scale:
        """clean, corrupted [B]: the metric of both runs."""
        return Scale(self.metric_name, clean, corrupted, self.direction, self.normalize)

    def facts(self, clean: Tensor, corrupted: Tensor) -> dict[str, Any]:
        """The fields that all results of pairs have."""
        return dict(
            clean_metric=clean.numpy(), corrupted_metric=corrupted.numpy(), metric=self.metric_name, direction=self.direction,
            normalized=self.normalize, model_name=self.model_name,
        )  # fmt: skip


def ask(
    model: Model,
    clean: Tokens | Sequence[Tokens],
    corrupted: Tokens | Sequence[Tokens],
    *,
    direction: Direction = "denoise",
    metric: Metric = "kl",
    answer: int | str | Sequence[int | str] | None = None,
    wrong: int | str | Sequence[int | str] | None = None,
    normalize: bool = True,
    read: int | Sequence[int] = -1,
    memory_gb: float | None = None,
    return_logits: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PairQuestion:
    """Checks the options of a sweep over pairs. Raises ValueError or TypeError naming the argument that is wrong."""
    check_choice("direction", direction, ("denoise", "noise"))
    check_seed(seed)
    check_progress(progress)
    check_metric(metric, answer, wrong)
    model.family.refuse_unsupported()
    pairs, single = make_pairs(model, clean, corrupted, answer=answer, wrong=wrong, read=read)
    budget = budget_of(model, metric, memory_gb, return_logits)
    return PairQuestion(
        model.family, model.prefixes, model.name, pairs, single, direction, metric, normalize, budget, seed, progress,
        model.tokenizer,
    )  # fmt: skip


def budget_of(model: Model, metric: Metric, memory_gb: float | None, return_logits: bool) -> Budget:
    """What a call may use. Raises ValueError or TypeError for a budget that is no positive number."""
    columns = 2 if metric == "logit_diff" else None
    return Budget(model.family, memory_budget(memory_gb, *model.family.devices), columns, return_logits)

"""The settings of a run: what may be said, and what two runs must agree on to share a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pycotmech._choices import check_choice
from pycotmech.runs.pair_files.choose import digest_of
from pycotmech.runs.provenance import deciding_versions

DEFAULT_EXAMPLES = 10
DEFAULT_SHOTS = {"tiny-cot": 4}
"""Demonstrations in the prompt, for models where 8 is not right: tiny-cot was trained with up to 4."""

_TASK = ("examples", "steps", "shots", "hops", "style", "order", "ontology", "distractors", "competing", "template", "think")
_RANGES = {
    "examples": (1, None),
    "shots": (0, None),
    "hops": (1, None),
    "distractors": (0, None),
    "competing": (0, None),
    "seed": (0, 2**32 - 1),
}


class Points(NamedTuple):
    """A part of the examples: from `start` up to `stop`, counted from 0; a stop of None is the end. of: how many there are."""

    start: int = 0
    stop: int | None = None
    of: int | None = None

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.stop is None else self.stop}"


@dataclass(frozen=True)
class Settings:
    """What a run does. None means the default of the task (10 examples, all steps, 8 shots, 2 hops, ...).

    pairs: a file of the user's own prompt pairs (`read_pairs`) instead of the task; the task's fields have no meaning with it.
    positions: where heads are patched, negative from the end; None: everywhere.
    controls: whether sweeps have the random control of 6 % of the heads, with the next example's activations, and the sham
        position, which cost about a tenth (`pcm.patch_heads`).
    template, think: as for `cot.make_examples`; with a template, its BOS is that of the prompts.
    points: only these examples, or pairs of the file. `pycotmech merge` puts the folders of parts together.
    """

    model: str
    pairs: Path | None = None
    examples: int | None = None
    steps: tuple[int, ...] | None = None
    shots: int | None = None
    hops: int | None = None
    style: str | None = None
    order: str | None = None
    ontology: str | None = None
    distractors: int | None = None
    competing: int | None = None
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0
    direction: str = "denoise"
    metric: str = "kl"
    positions: tuple[int, ...] | None = None
    memory_gb: float | None = None
    threads: int | None = None
    controls: bool = True
    points: Points | None = None
    template: str | None = None
    think: bool = False

    def check(self) -> None:
        """Raises ValueError naming the setting for what is wrong with any model."""
        for name, allowed in _choices().items():
            value = getattr(self, name)
            if value is not None:
                check_choice(name, value, allowed)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value > most)):
                expected = f"{least} or more" if most is None or value < least else f"at most {most}"
                raise ValueError(f"{name}: got {value}; expected {expected}")
        check_threads(self.threads)
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise ValueError(f"memory_gb: got {self.memory_gb}; expected a positive number of gigabytes")
        if self.positions is not None and not self.positions:
            raise ValueError("positions: the list is empty; expected positions, or none for all")
        if self.points is not None and self.pairs is None:
            self.with_points_of(self.n_examples)
        if self.pairs is not None:
            for name in _TASK:
                if getattr(self, name) not in (None, False):
                    raise ValueError(f"{name}: has no meaning with pairs, which are prompts of their own")
        if self.think and self.template is None:
            raise ValueError("think: got True without a template; expected template 'chat', whose turn the block is in")
        for step in self.steps or ():
            if not 0 <= step < self.n_steps:
                raise ValueError(f"steps: got {step}; expected 0..{self.n_steps - 1} for {self._hops} hops")
        if self.steps is not None and not self.steps:
            raise ValueError(f"steps: the list is empty; expected numbers in 0..{self.n_steps - 1}")

    def with_points_of(self, n: int) -> Settings:
        """Returns the settings with their points among n examples; without points if these are all of them.

        Raises ValueError for points that are no part of n examples.
        """
        if self.points is None:
            return self
        start, stop = self.points.start, n if self.points.stop is None else self.points.stop
        if not 0 <= start < stop <= n:
            raise ValueError(
                f"points: got {self.points}; expected START:STOP with 0 <= START < STOP <= {n}, the number of examples"
            )
        return replace(self, points=None if (start, stop) == (0, n) else Points(start, stop, n))

    @property
    def _hops(self) -> int:
        return 2 if self.hops is None else self.hops

    @property
    def n_steps(self) -> int:
        return 4 * self._hops + 2

    @property
    def chosen_steps(self) -> list[int]:
        return sorted(set(self.steps)) if self.steps is not None else list(range(self.n_steps))

    @property
    def n_examples(self) -> int:
        return DEFAULT_EXAMPLES if self.examples is None else self.examples

    def task(self) -> dict[str, Any]:
        """The arguments of `cot.make_examples`, without n and the tokenizer."""
        from pycotmech.cot.task.wording import DEFAULT_ORDER

        style = self.style or "every"
        return {
            "hops": self._hops,
            "shots": DEFAULT_SHOTS.get(self.model, 8) if self.shots is None else self.shots,
            "ontology": self.ontology or "fictional",
            "style": style,
            "order": self.order or DEFAULT_ORDER.get(style),
            "distractors": self.distractors or 0,
            # Only if there are any: folders of runs without them do not say it.
            **({"competing": self.competing} if self.competing else {}),
            **({"template": self.template, "think": self.think} if self.template else {}),
            "seed": self.seed,
        }

    def identity(self) -> dict[str, Any]:
        """What two runs must agree on to share a results folder. Threads and memory change nothing beyond rounding."""
        out: dict[str, Any] = {"model": self.model, "dtype": self.dtype, "device": self.device}
        if self.pairs is not None:
            out["pairs"] = f"{self.pairs.name} (sha256 {digest_of(self.pairs)[:16]})"
            out["seed"] = self.seed
        else:
            out |= {"examples": self.n_examples, "steps": self.chosen_steps, **self.task()}
        if self.points is not None:
            out["points"] = list(self.points)
        out |= {"direction": self.direction, "metric": self.metric}
        if self.controls:
            out["controls"] = True
        out["positions"] = "all" if self.positions is None else list(self.positions)
        return {**out, **deciding_versions()}


def check_threads(n: int | None) -> None:
    """Raises ValueError for a number of threads that this machine does not have."""
    cores = os.cpu_count() or 1
    if n is not None and not 1 <= n <= cores:
        expected = "1 or more" if n < 1 else f"at most {cores}, the cores of this machine"
        raise ValueError(f"threads: got {n}; expected {expected}")


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Lets PyTorch use n threads in the block (None: as many as before) and leaves the number as it was."""
    import torch

    check_threads(n)
    before = torch.get_num_threads()
    try:
        if n is not None:
            torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)


def _choices() -> dict[str, tuple[str, ...]]:
    """The settings that are one of a few words."""
    from pycotmech.cot.task.chat import Template
    from pycotmech.cot.task.vocabulary import Ontology
    from pycotmech.cot.task.wording import Order, Style
    from pycotmech.engine.metrics import MetricName
    from pycotmech.patching.heads import Direction

    words: dict[str, Any] = {"direction": Direction, "metric": MetricName, "style": Style, "order": Order, "ontology": Ontology}
    words["template"] = Template
    dtypes = ("auto", "float32", "bfloat16", "float16", "float64")
    return {"dtype": dtypes, **{name: get_args(literal) for name, literal in words.items()}}

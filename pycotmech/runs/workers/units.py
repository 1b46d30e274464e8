"""What goes to a worker and what comes back: plain numbers and arrays, which any transport can carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pycotmech.runs.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.patching import Sweep
    from pycotmech.patching.pairs import Pair

BEGINNING = 128
"""Tokens that two prompts must have in common before what they share is kept."""

REPLICA = "pycotmech.runs.workers.replica:open_replica"
"""The function that makes a worker's replica of a `ReplicaSpec`, as "module:name"."""


@dataclass(frozen=True)
class Weights:
    """Where a replica takes its weights from.

    folder: a checkpoint of exactly the weights of the main process; None: they are loaded by the model's name. name,
    prepend_bos, notes: those of the model, which a folder does not say.
    """

    folder: str | None = None
    name: str | None = None
    prepend_bos: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplicaSpec:
    """What a worker must know before its first unit.

    device: of this worker; threads: how many PyTorch uses in it (None: as many as it likes). memory_gb: what a sweep may use;
    None: a share of what is free on the device, `share` workers having the same one. identity: digests of weights and
    configuration that the replica must have; None: it is not compared. opener: see `REPLICA`.
    """

    settings: Settings
    device: str
    threads: int | None
    memory_gb: float | None
    share: int = 1
    weights: Weights = Weights()
    identity: Mapping[str, str] | None = None
    opener: str = REPLICA


@dataclass(frozen=True, eq=False)
class GradeUnit:
    """Grades one example by one forward pass.

    tokens [T]: the example. positions: where logits are kept; None: everywhere. targets: of each step the positions of the
    kept logits and the tokens that must be the likeliest there.
    """

    number: int
    tokens: NDArray[np.int64]
    positions: int | None
    targets: tuple[tuple[tuple[int, int], ...], ...]
    where: str

    @property
    def beginning(self) -> NDArray[np.int64]:
        return self.tokens[:0]  # a whole forward pass uses nothing that is kept


@dataclass(frozen=True, eq=False)
class PatchUnit:
    """Patches every head of some steps of one example, which one run of the model answers.

    clean, corrupted: token ids [T] of each step; answer, wrong: their tokens. others: of each the prompt [T] that its random
    control takes activations from, or None where there is none.
    """

    number: int
    clean: tuple[NDArray[np.int64], ...]
    corrupted: tuple[NDArray[np.int64], ...]
    answer: tuple[int | None, ...]
    wrong: tuple[int | None, ...]
    where: str
    others: tuple[NDArray[np.int64] | None, ...] = ()

    @classmethod
    def of(cls, number: int, pairs: list[Pair], where: str, others: Sequence[Tensor | None]) -> PatchUnit:
        """pairs, others: one for each step."""
        return cls(
            number,
            tuple(pair.clean.numpy() for pair in pairs), tuple(pair.corrupted.numpy() for pair in pairs),
            tuple(pair.answer for pair in pairs), tuple(pair.wrong for pair in pairs), where,
            tuple(None if other is None else other.numpy() for other in others),
        )  # fmt: skip

    @property
    def beginning(self) -> NDArray[np.int64]:
        """The first prompt [T], by which it is told which worker keeps most of it. Empty if the clean and the corrupted prompt
        part so early that nothing of them is kept."""
        clean, corrupted = self.clean[0], self.corrupted[0]
        shared = len(clean) > BEGINNING and np.array_equal(clean[:BEGINNING], corrupted[:BEGINNING])
        return clean if shared else clean[:0]


class Unit(Protocol):
    """What a scheduler must know of a unit. A worker gets it whole; what else it holds is between those who make and answer it.

    number: of the unit in its run. where: what it is, for a reader. beginning: the prompt [T] by which it is told which worker
    keeps most of it; empty if nothing of it is kept.
    """

    @property
    def number(self) -> int: ...

    @property
    def where(self) -> str: ...

    @property
    def beginning(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Answer:
    """What became of a unit.

    right: of a GradeUnit, by step. sweeps: of a PatchUnit, by step. result: of any other unit. seconds: wall time in the
    worker. error: why there is no result. final: whether the steps of a unit that failed need not be tried one by one. notes:
    what a reader of the results should know; warnings: texts of warnings that were issued in another process.
    """

    unit: int
    right: tuple[int, ...] | None = None
    sweeps: list[Sweep] | list[Any] = field(default_factory=list)
    result: Any = None
    seconds: float = 0.0
    error: str | None = None
    final: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

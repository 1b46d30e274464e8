"""One replica of the model, and how it answers units: in the main process, in a process of its own, in an actor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pycotmech.runs.pairs import sweep_options
from pycotmech.runs.provenance import model_identity
from pycotmech.runs.workers.units import Answer, GradeUnit, PatchUnit, ReplicaSpec, Unit

if TYPE_CHECKING:
    from pycotmech.model import Model
    from pycotmech.patching import Sweep

_HALVINGS = 5
"""How often the memory of a unit is halved after it did not suffice."""

Watch = Callable[[float], None]
"""Called with the share of a unit that is done."""


class Replica:
    """A loaded model that answers units."""

    def __init__(self, model: Model, spec: ReplicaSpec) -> None:
        self.model, self.spec = model, spec
        self._memory_gb = memory_of(model, spec)

    def answer(self, unit: Unit, watch: Watch | None = None) -> Answer:
        """Does a unit. An error of the unit is an answer too; KeyboardInterrupt is raised."""
        start, notes = time.perf_counter(), ()
        memory_gb = self._memory_gb
        for halved in range(_HALVINGS + 1):
            try:
                if isinstance(unit, GradeUnit):
                    answer = Answer(unit.number, right=self._graded(unit))
                elif isinstance(unit, PatchUnit):
                    answer = Answer(unit.number, sweeps=self._patched(unit, memory_gb, watch))
                else:
                    raise TypeError(f"unit: got {type(unit).__name__}; expected GradeUnit or PatchUnit")
                return replace(answer, seconds=time.perf_counter() - start, notes=notes)
            except Exception as error:
                failure, exhausted = described(error), is_out_of_memory(error)
            # Beyond the block, so that the traceback no longer holds what filled the memory.
            if not exhausted or isinstance(unit, GradeUnit) or halved == _HALVINGS:
                return Answer(unit.number, seconds=time.perf_counter() - start, error=failure)
            memory_gb = self._freed(memory_gb)
            notes = (
                f"{unit.where}: memory did not suffice and was halved to {memory_gb:.3g} GB; these values may differ from an "
                "undisturbed run within the noise floor",
            )
        raise AssertionError("unreachable")

    def _freed(self, memory_gb: float | None) -> float:
        """Lets go of what is kept, and returns half of the memory that was allowed."""
        from pycotmech.engine.planner import memory_budget

        self.model.prefixes.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return (memory_budget(memory_gb, *self.model.family.devices) / 2**30) / 2

    def _graded(self, unit: GradeUnit) -> tuple[int, ...]:
        found: Any = self.model.run(torch.from_numpy(np.array(unit.tokens)), positions=unit.positions)
        likeliest = found.logits.argmax(-1).tolist()
        return tuple(int(all(likeliest[at] == token for at, token in targets)) for targets in unit.targets)

    def _patched(self, unit: PatchUnit, memory_gb: float | None, watch: Watch | None) -> list[Sweep]:
        from pycotmech.patching import patch_heads_each

        others = [None if other is None else torch.from_numpy(np.array(other)) for other in unit.others]
        clean, corrupted = ([torch.from_numpy(np.array(p)) for p in prompts] for prompts in (unit.clean, unit.corrupted))
        options = sweep_options(self.spec.settings, lambda name: list(getattr(unit, name)), others)
        if watch is not None:
            options["progress"] = lambda done, total: watch(done / max(1, total))
        return patch_heads_each(self.model, clean, corrupted, memory_gb=memory_gb, **options)


class QuietReplica:
    """A replica in a process of its own: its warnings travel with its answers."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def answer(self, unit: Unit) -> Answer:
        return with_warnings(lambda: self.replica.answer(unit))


def with_warnings(answer: Callable[[], Answer]) -> Answer:
    """Returns the answer with the texts of the warnings that were issued on the way to it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = answer()
    texts = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
    return replace(found, warnings=tuple(texts))


def memory_of(model: Model, spec: ReplicaSpec) -> float | None:
    """Returns the memory that a replica may use, in GiB; None if it may use half of what is free."""
    if spec.memory_gb is not None or spec.share <= 1:
        return spec.memory_gb
    from pycotmech.engine.planner import memory_budget

    return memory_budget(None, *model.family.devices) / 2**30 / spec.share


def open_replica(spec: ReplicaSpec) -> QuietReplica:
    """Returns a replica with a model of its own. Raises what `load_replica` raises."""
    return QuietReplica(Replica(load_replica(spec), spec))


def load_replica(spec: ReplicaSpec) -> Model:
    """Loads the model in a worker. Raises what loading raises, and ValueError where its weights are not those of the run."""
    from pycotmech.model import Model

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    weights, settings = spec.weights, spec.settings
    source = settings.model if weights.folder is None else weights.folder
    dtype = settings.dtype if weights.folder is None else "auto"
    model = Model.from_pretrained(source, dtype=dtype, device=spec.device)
    if weights.folder is not None:
        model = Model(
            model.hf, model.tokenizer, name=weights.name, prepend_bos=weights.prepend_bos, notes=weights.notes, check=False
        )
    if spec.identity is not None:
        found = model_identity(model)
        differ = [f"{name} is {found.get(name)}, expected {value}" for name, value in spec.identity.items()
                  if found.get(name) != value]  # fmt: skip
        if differ:
            raise ValueError(f"model: {settings.model} is another one on this worker: {'; '.join(differ)}")
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def described(error: Exception) -> str:
    """Returns an error as one line: its text if it is about an argument, otherwise with its kind."""
    text = " ".join(str(error).split())
    return (
        text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}" if text else type(error).__name__
    )

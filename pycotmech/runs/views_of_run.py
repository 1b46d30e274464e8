"""The heads of a finished run for its report: which are strongest, and what they attend to and write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.runs.head_views import keep_head_views, prompts_of_records, strongest_heads
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.report.aggregate import by_step
from pycotmech.runs.store import SweepState, read, stored_identity

if TYPE_CHECKING:
    from pycotmech.model import Model


def keep_views_of_run(
    folder: Path,
    model: Model,
    records: Iterable[Mapping[str, Any]],
    progress: ProgressReporter | None = None,
    *,
    memory_gb: float | None = None,
) -> bool:
    """Writes heads.json of a folder of `run` from what is finished in it, and returns whether it is there.

    records: the lines of its examples.jsonl. Cost: the results are read; see `pycotmech.runs.head_views.head_views`.
    """
    data = read(folder)
    steps = by_step(data)
    limit = np.fmax(steps["noise_floor"].values, steps["control"].values)
    values = steps["restoration"].transpose("step", "layer", "head").values
    finished = (data["state"] == SweepState.FINISHED).transpose("example", "step").values
    numbers = data["step"].values.tolist()
    by_example = {
        str(name): [numbers[s] for s in np.flatnonzero(row)] for name, row in zip(data["name"].values, finished, strict=True)
    }
    prompts = prompts_of_records(model, records, by_example)
    identity = stored_identity(folder) or {}
    return keep_head_views(folder, model, prompts, strongest_heads(values, limit), identity, progress, memory_gb=memory_gb)

"""The heads of a run for its report: which are strongest, and what they attend to and write.

A run keeps this at its end (`keep_views_of_run`), a merged folder takes it from its parts (`keep_views_of_parts`), and for a
folder that has none it is made with the model (`make_views_of_run`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pycotmech.files.text import printable
from pycotmech.files.whole import write_sealed
from pycotmech.runs.folder import open_folder
from pycotmech.runs.head_views import EXAMPLES, FILE, keep_head_views, prompts_of_records, read_head_views, strongest_heads
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import model_identity
from pycotmech.runs.report.aggregate import by_step
from pycotmech.runs.store import SweepState, read, stored_identity
from pycotmech.runs.work import EXAMPLES_FILE, prompts_digest

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
    heads = _strongest(data)
    finished = (data["state"] == SweepState.FINISHED).transpose("example", "step").values
    numbers = data["step"].values.tolist()
    by_example = {
        str(name): [numbers[s] for s in np.flatnonzero(row)] for name, row in zip(data["name"].values, finished, strict=True)
    }
    prompts = prompts_of_records(model, records, by_example)
    identity = stored_identity(folder) or {}
    return keep_head_views(folder, model, prompts, heads, identity, progress, memory_gb=memory_gb)


def _strongest(data: xr.Dataset) -> list[tuple[int, int]]:
    """The strongest heads beyond noise floor and control, of all steps."""
    steps = by_step(data)
    limit = np.fmax(steps["noise_floor"].values, steps["control"].values)
    return strongest_heads(steps["restoration"].transpose("step", "layer", "head").values, limit)


def make_views_of_run(
    out: str | os.PathLike,
    *,
    device: str | None = None,
    memory_gb: float | None = None,
    progress: ProgressReporter | None = None,
) -> bool:
    """Makes heads.json of a folder of `run` or `sweep` that has none, and returns whether it is there.

    device: where the model is loaded; None: where the sweeps were computed. Raises FileNotFoundError where the folder has no
    results or examples.jsonl is missing, ValueError where the model or the prompts are not those of the results. Cost: the
    model is loaded, the results are read; see `pycotmech.runs.head_views.head_views`.
    """
    from pycotmech.model import Model

    with open_folder(out) as folder:
        identity = stored_identity(folder)
        if identity is None:
            raise FileNotFoundError(f"folder: {printable(folder)} holds no results of a run")
        records = _records(folder, identity)
        dtype, place = identity.get("dtype", "auto"), device or identity.get("device", "cpu")
        model = Model.from_pretrained(identity["model"], dtype=dtype, device=place)
        found = model_identity(model)
        differ = [name for name, digest in found.items() if identity.get(name) not in (None, digest)]
        if differ:
            raise ValueError(
                f"heads: {printable(identity['model'])} is not the model of these results: its {' and '.join(differ)} differ"
            )
        return keep_views_of_run(folder, model, records, progress, memory_gb=memory_gb)


def _records(folder: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of examples.jsonl. Raises FileNotFoundError or ValueError where these are not the prompts of the results."""
    file = folder / EXAMPLES_FILE
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(f"heads: {printable(file)} is missing, which has the prompts; the command of the run writes it")
    try:
        records = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]
        intact = prompts_digest(records) == identity.get("prompts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(
            f"heads: {printable(file)} does not hold the prompts of these results; the command of the run writes it"
        )
    return records


def keep_views_of_parts(out: str | os.PathLike, parts: Sequence[str | os.PathLike]) -> bool:
    """Writes heads.json of a merged folder from those of its parts, and returns whether it is there.

    It holds the first examples that a part has views of, and the strongest heads of the merged results that were also among
    the strongest of that part. Parts without heads.json are passed over. The model is not needed.
    """
    data = read(Path(out))
    of_parts = [views for part in parts if (views := read_head_views(Path(part))) is not None]
    strongest = [f"{l}.{h}" for l, h in _strongest(data)]
    texts, views, examples = [], [], 0
    for name in map(str, data["name"].values.tolist()):
        for kept in of_parts:
            here = [view for view in kept["views"] if view["example"] == name]
            place: dict[int, int] = {}
            for view in here:
                heads = {head: view["heads"][head] for head in strongest if head in view["heads"]}
                if not heads:
                    continue
                if view["text"] not in place:
                    place[view["text"]] = len(texts)
                    texts.append({"example": name, "tokens": kept["texts"][view["text"]]})
                views.append({**view, "text": place[view["text"]], "heads": heads})
            if here:
                examples += 1
                break
        if examples == EXAMPLES:
            break
    shown = {head for view in views for head in view["heads"]}
    if not shown:
        return False
    heads = [head for head in strongest if head in shown]
    of = {"identity": data.attrs["identity"], "parts": [Path(part).name for part in parts]}
    write_sealed(Path(out) / FILE, {"of": of, "heads": heads, "texts": texts, "views": views})
    return True

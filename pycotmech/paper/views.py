"""What the strongest heads of E1 attend to and write, kept for the report of the paper's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycotmech.files.text import printable
from pycotmech.paper.one_setting import identity_of, stored_facts
from pycotmech.runs.folder import open_folder, refuse_other_settings
from pycotmech.runs.head_views import EXAMPLES, ViewedPrompt, keep_head_views, strongest_heads
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.provenance import model_identity
from pycotmech.runs.settings import Settings
from pycotmech.runs.work import make_examples

if TYPE_CHECKING:
    from pycotmech.cot import Examples
    from pycotmech.cot.analyses.patch_steps import PatchSteps
    from pycotmech.model import Model


def keep_views(
    folder: Path,
    model: Model,
    examples: Examples,
    identity: Mapping[str, Any],
    patched: PatchSteps,
    progress: ProgressReporter,
    *,
    memory_gb: float | None = None,
) -> bool:
    """Writes heads.json (`pycotmech.runs.head_views`) for the strongest heads of E1 in three examples, and returns whether it
    is there. patched: the result of E1 on these examples."""
    values = patched.scores()["mean"].transpose("step", "layer", "head").values
    limit = np.fmax(patched.data["noise_floor"].max("example").values, patched.control().values)
    counts = patched.data["effect"].notnull().any(("layer", "head")).transpose("example", "step").values
    steps, names = patched.data["step"].values.tolist(), patched.data["example"].values.tolist()
    used = [e for e in range(len(counts)) if counts[e].any()][:EXAMPLES]
    by_name = {example.index: example for example in examples}
    prompts = [
        ViewedPrompt(str(names[e]), step, by_name[names[e]].steps[step].clean, by_name[names[e]].steps[step].answer_word)
        for e in used
        for s, step in enumerate(steps)
        if counts[e, s]
    ]
    return keep_head_views(folder, model, prompts, strongest_heads(values, limit), identity, progress, memory_gb=memory_gb)


def make_views(
    out: str | os.PathLike,
    *,
    device: str | None = None,
    accept_version: bool = False,
    memory_gb: float | None = None,
    progress: ProgressReporter | None = None,
) -> bool:
    """Makes heads.json of a folder of `paper` that has none, and returns whether it is there.

    device: where the model is loaded; None: where the results were computed. accept_version: whether to go on although the
    examples are made by another version of pycotmech than the results. Raises FileNotFoundError where E1 is not in the folder,
    ValueError where the model or its examples are not those of the results. Cost: the model is loaded, the examples are made
    again, and two forward passes of three of them.
    """
    from pycotmech.cot.analyses.patch_steps import PatchSteps
    from pycotmech.model import Model
    from pycotmech.runs.results import PaperResults, open_results

    results = open_results(out)
    patched = results.analysis("patch_steps") if isinstance(results, PaperResults) and "patch_steps" in results.names else None
    if not isinstance(patched, PatchSteps):
        raise FileNotFoundError(
            f"heads: {printable(os.fspath(out))} does not have E1 (patch_steps), whose strongest heads are shown"
        )
    with open_folder(out) as folder:
        facts = stored_facts(folder)
        stored = facts["identity"]
        settings = _settings_of(stored)
        model = Model.from_pretrained(settings.model, dtype=settings.dtype, device=device or settings.device)
        now = identity_of(settings, model_identity(model))
        refuse_other_settings(folder, stored, now, accept_version=accept_version)
        examples = make_examples(model, settings)
        progress = progress or ProgressReporter()
        return keep_views(folder, model, examples, stored, patched, progress, memory_gb=memory_gb)


def _settings_of(identity: Mapping[str, Any]) -> Settings:
    """The settings that an identity was made of; what it does not hold changes no number."""
    names = {field.name for field in fields(Settings)}
    found = {name: value for name, value in identity.items() if name in names}
    for name in ("steps", "positions"):
        found[name] = tuple(found[name]) if isinstance(found.get(name), list) else None
    found["controls"] = bool(identity.get("controls"))
    return Settings(**found)

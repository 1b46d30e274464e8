"""Results folders in made-up numbers and tokens, of any size, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pycotmech.files.whole import write_sealed
from pycotmech.runs import ResultAxes, SweepStore
from pycotmech.runs.head_views import FILE, KEYS, WORDS

HOSTILE = '</script><img src=x onerror="document.title=1;window.owned=1"><!--'
"""A token that would end the script, load an image and run."""
KINDS = ("decision", "copying", "induction")


def run_folder(
    folder: Path,
    *,
    layers: int = 6,
    heads: int = 4,
    steps: int = 3,
    examples: int = 4,
    tokens: int = 60,
    finished: int | None = None,
    views: bool = True,
    hostile: str = HOSTILE,
) -> Path:
    """A folder of `run`. finished: examples that are done; None: all. views: whether heads.json is there. Every fifth token is
    the hostile one, and so are the model's name, its notes and the words of the example."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [KINDS[s % len(KINDS)] for s in range(steps)]
    identity = {"model": "made-up", "metric": "kl", "direction": "denoise", "positions": "all", "seed": 0}
    model = {"name": f"made-up {hostile}", "description": "a model", "notes": [f"a note {hostile}"], "dtype": "float32"}
    about = {"model": model, "versions": {"pycotmech": "0"}, "created": "2026-01-01T00:00:00Z", "threads": 1}
    axes = ResultAxes([str(e) for e in range(examples)], list(range(steps)), kinds, layers, heads)
    store = SweepStore.create(folder, axes, identity=identity, about=about)
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(steps, layers, heads)) * (rng.random((steps, layers, heads)) < 0.05) * 0.4
    signal[:, layers // 2, heads // 2] = 0.7
    for e in range(examples if finished is None else finished):
        effect = signal + 0.01 * rng.normal(size=signal.shape)
        control = np.where(rng.random(signal.shape) < 0.3, 0.01 * rng.normal(size=signal.shape), np.nan)
        sweeps = [
            SimpleNamespace(
                raw=effect[s], values=effect[s], effect=effect[s], clean_metric=[0.0], corrupted_metric=[2.0 + e],
                noise_floor=1e-4, control=control[s], sham=0.0,
            )
            for s in range(steps)
        ]  # fmt: skip
        store.grade(e, [1] * steps)
        store.finish(e, list(range(steps)), sweeps, 1.0)
    words = [hostile if i % 5 == 4 else f" w{i}" for i in range(tokens)]
    record = {
        "example": 0, "question": f"Is it? {hostile}", "query": "Max is a", "chain": hostile,
        "steps": [{"step": s, "prefix_text": f"Max is a {hostile}", "answer_word": f"tumpus{s}"} for s in range(steps)],
    }  # fmt: skip
    (folder / "examples.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    if views:
        write_sealed(folder / FILE, made_views(words, steps, layers, heads, hostile))
    return folder


def made_views(words: list[str], steps: int, layers: int, heads: int, hostile: str = HOSTILE) -> dict:
    """What heads.json holds, of three examples and the head in the middle."""
    rng = np.random.default_rng(1)
    name = f"{layers // 2}.{heads // 2}"
    views = []
    for e in range(3):
        for step in range(steps):
            read = len(words) - 1 - 2 * (steps - 1 - step)
            keys = sorted(rng.choice(read, KEYS, replace=False).tolist())
            mass = sorted(rng.dirichlet(np.ones(KEYS + 1))[:KEYS].round(4).tolist(), reverse=True)
            one = {
                "keys": keys,
                "mass": mass,
                "words": [hostile, *[f"t{i}" for i in range(WORDS - 1)]],
                "adds": [3.5, 2.0, 1.5, 1.0, 0.5],
            }
            views.append({"example": str(e), "step": step, "text": e, "read": read, "answer": hostile, "heads": {name: one}})
    texts = [{"example": str(e), "tokens": words} for e in range(3)]
    return {"of": {}, "heads": [name], "texts": texts, "views": views, "cost": {"forwards": 6, "seconds": 1.0}}

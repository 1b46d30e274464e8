"""Circuits in the JSON format of EAP-IG and the Mechanistic Interpretability Benchmark (MIB), at the level of nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.files.write import subfolder, write_text
from pycotmech.model import ModelConfig
from pycotmech.model.arguments import check_integer
from pycotmech.patching import Sweep

TASKS = ("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge")
MODELS = ("interpbench", "gpt2", "qwen2.5", "gemma2", "llama3")
"""The names that MIB's submissions are made of; others can be evaluated with its code, but not submitted."""


class CircuitSizes(NamedTuple):
    """What a circuit has of a model's sizes, for results that are stored without the model."""

    n_layers: int
    n_heads: int
    d_model: int
    parallel: bool = False


def mib_circuit(
    scores: Sweep | ArrayLike, cfg: ModelConfig | CircuitSizes, *, mlps: ArrayLike | None = None, keep: int | None = None
) -> dict[str, Any]:
    """Returns a circuit: {"cfg", "nodes": {"a0.h0": {"in_graph", "score"}, "m0": ...}, "edges"}.

    scores: a sweep over heads, whose effects are taken, or an array [L, H]. cfg: `model.cfg`, or `CircuitSizes`. mlps: [L]. A
        node whose score is NaN, or not given, has none; MIB counts it as always part of the circuit, and so it is with the
        input.
    keep: the circuit holds the `keep` scored nodes of the largest |score|, the nodes without a score, and all edges between
        them; None: scores alone, from which MIB cuts circuits of all sizes itself.
    Raises TypeError or ValueError naming the argument.
    """
    values = _checked(scores.effect if isinstance(scores, Sweep) else scores, (cfg.n_layers, cfg.n_heads), "scores")
    below = _checked(np.full(cfg.n_layers, np.nan) if mlps is None else mlps, (cfg.n_layers,), "mlps")
    found: dict[str, float] = {"input": float("nan")}
    for l in range(cfg.n_layers):
        found |= {f"a{l}.h{h}": float(values[l, h]) for h in range(cfg.n_heads)} | {f"m{l}": float(below[l])}
    scored = sorted((n for n, v in found.items() if not np.isnan(v)), key=lambda n: -abs(found[n]))
    if not scored:
        raise ValueError("scores: no node has a score")
    keep = None if keep is None else check_integer(keep, "keep", 0, len(scored))
    chosen = set() if keep is None else {*scored[:keep], *(n for n, v in found.items() if np.isnan(v))}
    nodes: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        nodes[name] = {"in_graph": name in chosen, **({} if np.isnan(value) else {"score": value})}
    nodes["logits"] = {"in_graph": True}
    inside = {*chosen, "logits"} if chosen else set()
    edges = {name: {"score": 0.0, "in_graph": True} for a, b, name in _edges(cfg) if a in inside and b in inside}
    sizes = {"n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "parallel_attn_mlp": cfg.parallel, "d_model": cfg.d_model}
    return {"cfg": sizes, "nodes": nodes, "edges": edges}


def write_mib(folder: str | os.PathLike, circuit: dict[str, Any], *, task: str, model: str) -> Path:
    """Writes a circuit to FOLDER/{task}_{model}/importances.json, for MIB's evaluation (CPR, CMD), and returns the path.

    task, model: as MIB spells them, such as "ioi" and "gpt2" (`TASKS`, `MODELS`), or names of your own.
    Raises ValueError naming the argument.
    """
    for name, value in (("task", task), ("model", model)):
        if not isinstance(value, str) or not value or value.startswith(".") or not all(c.isalnum() or c in ".-" for c in value):
            raise ValueError(f"{name}: got {value!r}; expected letters, digits, '.' and '-', such as 'ioi'")
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    path = subfolder(place, f"{task}_{model}") / "importances.json"
    write_text(path, json.dumps(circuit, allow_nan=False) + "\n")
    return path


def _checked(values: Any, shape: tuple[int, ...], argument: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{argument}: got shape {list(array.shape)}; expected {list(shape)}")
    if np.isinf(array).any():
        raise ValueError(f"{argument}: has infinite values")
    return array


def _edges(cfg: ModelConfig | CircuitSizes) -> Iterator[tuple[str, str, str]]:
    """(from, to, name) of every edge: each node to each after it, to a head once each for q, k and v."""
    stream = ["input"]
    for l in range(cfg.n_layers):
        heads, mlp = [f"a{l}.h{h}" for h in range(cfg.n_heads)], f"m{l}"
        yield from ((a, b, f"{a}->{b}<{x}>") for a in stream for b in heads for x in "qkv")
        before = stream if cfg.parallel else [*stream, *heads]
        yield from ((a, mlp, f"{a}->{mlp}") for a in before)
        stream = [*stream, *heads, mlp]
    yield from ((a, "logits", f"{a}->logits") for a in stream)

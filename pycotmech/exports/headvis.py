"""HeadVis (Luger, Kamath et al. 2026): the tree of JSON files that its viewer and Neuronpedia read."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.exports.head_metrics import INDUCTION_THRESHOLD, METRICS, HeadSums
from pycotmech.exports.patterns import token_texts, watch_patterns
from pycotmech.files.write import subfolder, write_text
from pycotmech.model.arguments import check_integer, check_model, check_seed
from pycotmech.model.prompts import Tokens

if TYPE_CHECKING:
    from pycotmech.model import Model

_DISTANCES = [0, *(2**i for i in range(13))]
_BINS = 50
_TOP_TOKENS = 50


class Kept(NamedTuple):
    """A text as one head sees it: places row * T + key, ascending, and their weights."""

    text: int
    interval: int
    places: list[int]
    weights: list[float]


def write_headvis(
    folder: str | os.PathLike,
    model: Model,
    prompts: Sequence[Tokens],
    *,
    dataset: str,
    model_id: str | None = None,
    n_intervals: int = 5,
    samples: int = 3,
    top_samples: int = 10,
    keys_per_row: int = 8,
    threshold: float = 0.005,
    seed: int = 0,
) -> Path:
    """Writes what every head does on some texts as a HeadVis tree, and returns its folder, FOLDER/<model_id>/headvis/<dataset>.

    prompts: texts or token ids [T] of two tokens or more. dataset: what the texts are called. model_id: Neuronpedia's name of
        the model; None: the model's own.
    n_intervals: the texts are ordered for each head by their largest weight (the first row and column left out) and cut into so
        many intervals of equal size; `samples` of each, and of the highest the `top_samples` largest, are kept.
    keys_per_row, threshold: of a kept text the heaviest keys of each row are written, rounded to 4 decimals, if at least the
        threshold.

    Written are config.json, scatter_data.json (six metrics for each head), heads/L{l}H{h}.json, server_config.json and
    attributions/manifest.json. Names become folder names: other characters than letters, digits, ".", "_" and "-" are replaced.
    Raises TypeError, ValueError or OSError naming the argument.
    Cost: two passes over the texts, each with T x T products for each head. Memory: the kept texts, about
    8 * keys_per_row * T bytes for each head and kept text.
    """
    check_model(model)
    for value, name, least in ((n_intervals, "n_intervals", 1), (samples, "samples", 1), (top_samples, "top_samples", 1)):
        check_integer(value, name, least)
    check_integer(keys_per_row, "keys_per_row", 1)
    check_seed(seed)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: got {threshold}; expected 0 or more, and less than 1")
    names = _folder_name(model_id or model.name, "model_id"), _folder_name(dataset, "dataset")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts: expected a list of one text or more")
    texts = [model.to_tokens(prompt, argument=f"prompts[{i}]") for i, prompt in enumerate(prompts)]
    for i, tokens in enumerate(texts):
        if len(tokens) < 2:
            raise ValueError(f"prompts[{i}]: has {len(tokens)} token; expected two or more")

    sums, largest = _measured(model, texts)
    intervals = _intervals(largest, n_intervals, samples, top_samples, seed)
    kept = _kept(model, texts, intervals, keys_per_row, threshold)

    tree = Path(folder).expanduser()
    tree.mkdir(parents=True, exist_ok=True)
    for name in (names[0], "headvis", names[1]):
        tree = subfolder(tree, name)
    heads, attributions = subfolder(tree, "heads"), subfolder(tree, "attributions")
    shown = [token_texts(model, tokens) for tokens in texts]
    metrics = sums.metrics()
    L, H = model.cfg.n_layers, model.cfg.n_heads
    for l, h in np.ndindex(L, H):
        _write(heads / f"L{l}H{h}.json", _head(kept[l, h], shown, largest[:, l, h]))
    rows = [{"layer": l, "head": h, **{n: _rounded(float(v[l, h])) for n, v in metrics.items()}} for l, h in np.ndindex(L, H)]
    _write(tree / "scatter_data.json", rows)
    _write(tree / "server_config.json", {})
    _write(attributions / "manifest.json", {})
    pipeline = {
        "model_name": model.name, "np_model_id": names[0], "dataset_name": dataset, "n_sequences": len(texts),
        "seq_len": max(map(len, texts)), "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "attn_implementation": "pycotmech", "induction_attention_threshold": INDUCTION_THRESHOLD, "n_intervals": n_intervals,
        "samples_per_interval": samples, "samples_per_top_interval": top_samples, "sparse_topk_per_row": keys_per_row,
        "sparse_threshold": threshold, "sample_seed": seed, "actual_sequences_processed": len(texts),
        "num_hidden_layers": L, "num_attention_heads": H, "created_at": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    _write(tree / "config.json", _config(pipeline, L, H))
    return tree


def _measured(model: Model, texts: Sequence[Tensor]) -> tuple[HeadSums, NDArray[np.float64]]:
    """The metrics' sums, and the largest weight of each text and head outside the first row and column: [texts, L, H]."""
    sums = HeadSums(model.cfg.n_layers, model.cfg.n_heads)
    largest = np.zeros((len(texts), model.cfg.n_layers, model.cfg.n_heads))
    for i, tokens in enumerate(texts):
        sums.begin(tokens)

        def see(l: int, first: int, p: Tensor, i: int = i) -> None:
            sums.add(l, first, p)
            inner = p[1 if first == 0 else 0 :, :, 1:]
            if len(inner):
                largest[i, l] = np.maximum(largest[i, l], inner.amax((0, 2)).double().cpu().numpy())

        watch_patterns(model, tokens, see)
    return sums, largest


def _intervals(largest: NDArray, n: int, samples: int, top: int, seed: int) -> list[list[dict[int, int]]]:
    """For each layer and head the kept texts and their intervals, 1 (lowest) .. n."""
    L, H = largest.shape[1:]
    out: list[list[dict[int, int]]] = [[{} for _ in range(H)] for _ in range(L)]
    for l, h in np.ndindex(L, H):
        generator = np.random.default_rng([seed, l, h])
        order = np.argsort(largest[:, l, h], kind="stable")
        for i, part in enumerate(np.array_split(order, n)):
            if i == n - 1:
                chosen = part[::-1][:top]
            else:
                chosen = np.sort(generator.choice(part, min(samples, len(part)), replace=False)) if len(part) else part
            out[l][h].update({int(text): i + 1 for text in chosen})
    return out


def _kept(
    model: Model, texts: Sequence[Tensor], intervals: list[list[dict[int, int]]], keys: int, threshold: float
) -> dict[tuple[int, int], list[Kept]]:
    """The kept texts of each head, in the order of their intervals."""
    found: dict[tuple[int, int], list[Kept]] = defaultdict(list)
    for i, tokens in enumerate(texts):
        T = len(tokens)
        wanted = {(l, h): by[i] for l, row in enumerate(intervals) for h, by in enumerate(row) if i in by}
        if not wanted:
            continue
        for (l, h), interval in wanted.items():
            found[l, h].append(Kept(i, interval, [], []))

        def see(l: int, first: int, p: Tensor, T: int = T, wanted: Any = wanted) -> None:
            weights, at = p.topk(min(keys, T), -1)  # [n, H, k]
            rows = torch.arange(first, first + len(p), device=p.device)[:, None]
            for h in (h for layer, h in wanted if layer == l):
                places, order = (rows * T + at[:, h]).flatten().sort()
                values = weights[:, h].flatten()[order]
                # Ties beyond the diagonal, at weight 0, are no entries even without a threshold.
                enough = (values >= threshold) & (values > 0)
                entry = found[l, h][-1]
                entry.places.extend(places[enough].tolist())
                entry.weights.extend(np.round(values[enough].double().cpu().numpy(), 4).tolist())

        watch_patterns(model, tokens, see)
    return {place: sorted(kept, key=lambda k: (k.interval, k.text)) for place, kept in found.items()}


def _head(kept: Sequence[Kept], shown: Sequence[list[str]], largest: NDArray) -> dict[str, Any]:
    """The file of one head. largest: of all texts, [texts]."""
    sequences, histogram = [], np.zeros(len(_DISTANCES) - 1)
    sides: dict[str, dict[str, float]] = {"query": defaultdict(float), "key": defaultdict(float)}
    for entry in kept:
        tokens = shown[entry.text]
        T = len(tokens)
        for place, weight in zip(entry.places, entry.weights, strict=True):
            q, k = divmod(place, T)
            bin_ = int(np.searchsorted(_DISTANCES, abs(q - k), side="right")) - 1
            if bin_ < len(histogram):
                histogram[bin_] += weight
            sides["query"][tokens[q]] += weight
            sides["key"][tokens[k]] += weight
        sequences.append(
            {
                "sequence_id": entry.text,
                "interval": entry.interval,
                "tokens": tokens,
                "attention_indices": entry.places,
                "attention_values": entry.weights,
                "seq_len": T,
                "max_activation": _rounded(largest[entry.text]),
            }
        )
    counts = np.bincount(np.clip((largest * _BINS).astype(int), 0, _BINS - 1), minlength=_BINS)
    top = {
        f"top_{side}_tokens": [
            {"token": token, "weight": _rounded(weight)}
            for token, weight in sorted(weights.items(), key=lambda item: -item[1])[:_TOP_TOKENS]
        ]
        for side, weights in sides.items()
    }
    return {
        "sequences": sequences,
        "qk_distance_histogram": {"bin_edges": _DISTANCES, "bin_values": [_rounded(v) for v in histogram]},
        **top,
        "histogram": {"bin_edges": [round(i / _BINS, 4) for i in range(_BINS + 1)], "bin_values": counts.tolist()},
        "statistics": {"n_samples": len(sequences), "mean_max_activation": _rounded(largest.mean())},
    }


def _config(pipeline: dict[str, Any], L: int, H: int) -> dict[str, Any]:
    return {
        **{name: pipeline[name] for name in ("model_name", "np_model_id", "dataset_name", "n_intervals")},
        "heads": [[l, h] for l in range(L) for h in range(H)],
        "n_layers": L,
        "n_heads": H,
        "metrics": list(METRICS),
        "metric_descriptions": METRICS,
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [
            {"key": "qk_distance_histogram", "label": "Distance between query and key"},
            {"key": "histogram", "label": "Largest weights"},
        ],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Top query tokens"},
            {"key": "top_key_tokens", "label": "Top key tokens"},
        ],
        "statistics_display": {
            "n_samples": {"label": "Texts kept", "format": "default"},
            "mean_max_activation": {"label": "Mean largest weight", "format": "default"},
        },
        "pipeline_config": pipeline,
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _folder_name(text: str, argument: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{argument}: got {type(text).__name__}; expected a name")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100]
    if not name:
        raise ValueError(f"{argument}: got {text!r}; expected a name with a letter or a digit")
    return name


def _write(path: Path, value: Any) -> None:
    """Writes JSON that may stand inside a page: it holds no character that HTML would read as markup."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    write_text(path, text + "\n")

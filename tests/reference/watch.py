"""Which kernels a test of a family reached, how near it came to the truth, and the record of both that the docs show.

`python -m pytest -m "" tests/model/test_every_family.py tests/cot/analyses/test_every_family.py --record-families FILE`
writes the record (of the tests that ran; others stay), `python -m tests.reference.family_table` the table in docs/families.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pycotmech import ops

if TYPE_CHECKING:  # benchmarks use this file without pytest
    import pytest

# test -> the public function that it is about, the attention kernels that this must reach in float32
FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "test_run": ("Model.run", ("prefix_attn",)),
    "test_patch_heads": ("patch_heads", ("prefix_attn",)),
    "test_what_one_query_head_reads": ("patch_heads, per_query_head", ("prefix_attn",)),
    "test_patch_heads_by_position_and_of_a_list": ("patch_heads, by_position", ("prefix_attn",)),
    "test_groups_of_positions": ("patch_heads and patch_residual, groups", ("prefix_attn",)),
    "test_patch_residual": ("patch_residual", ("prefix_attn",)),
    "test_sweep": ("sweep", ("prefix_attn",)),
    "test_knock_out_edges": ("knock_out_edges", ("prefix_attn",)),
    "test_ablate_heads": ("ablate_heads", ("prefix_attn",)),
    "test_head_interactions": ("head_interactions", ("prefix_attn",)),
    "test_path_patch": ("path_patch", ("prefix_attn",)),
    "test_attribute_heads": ("attribute_heads", ()),
    "test_attention_summary": ("attention_summary", ("attn_colsum", "attn_extract", "attn_topk")),
    "test_head_scores": ("head_scores", ("attn_entries", "attn_extract")),
    "test_capture_attention": ("capture_attention", ("attn_colsum", "attn_extract")),
    "test_head_logits": ("head_logits", ("prefix_attn",)),
    "test_logit_lens": ("logit_lens", ("prefix_attn",)),
    "test_patch_steps": ("cot.patch_steps", ("prefix_attn",)),
    "test_decision_heads": ("cot.decision_heads", ("prefix_attn",)),
    "test_attention_by_source": ("cot.attention_by_source", ("prefix_attn",)),
    "test_answer_writers": ("cot.answer_writers", ("prefix_attn",)),
    "test_information_flow": ("cot.information_flow", ("prefix_attn",)),
    "test_results_of_run": ("pycotmech run", ("prefix_attn",)),
    "test_results_of_paper": ("pycotmech paper", ("prefix_attn",)),
}
BY_PYTORCH = ("attribute_heads",)
"""Functions that run the Hugging Face model's own attention, for its backward pass."""

_paused = 0


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """The reference's own forward passes are nobody's kernels."""
    global _paused
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1


class Watch(TorchDispatchMode):
    """Notes the library's kernels that run inside, and every softmax over whole T x T patterns."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()
        self.patterns: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not _paused and func.namespace == "pycotmech":
            self.kernels.add(func.name().split("::")[1].split(".")[0])
        if not _paused and func is torch.ops.aten._softmax.default and out.ndim == 4 and out.shape[-2] > 1:
            self.patterns.append(tuple(out.shape))
        return out


@contextlib.contextmanager
def watched(request: pytest.FixtureRequest, family: str, dtype: torch.dtype, errors: list[float]) -> Iterator[None]:
    """One test of one family. In float32 it must reach its kernels, in C++, and hold no T x T pattern; float64 runs on the
    references by design. errors: relative errors that the test appends; none: the function refuses the family."""
    name, wanted = FUNCTIONS[request.node.function.__name__]
    exact = dtype == torch.float64
    with contextlib.nullcontext() if exact else Watch() as watch:
        yield
    entry: dict = {"error": max(errors)} if errors else {"refused": True}
    if watch is not None and errors:
        reached = sorted(k for k in watch.kernels if "attn" in k)
        assert set(wanted) <= set(reached), f"{name} of {family} did not reach {set(wanted) - set(reached)}"
        slow = [k for k in reached if ops.describe()[k]["cpu"] != "C++"]
        assert not slow, f"{name} of {family} ran {slow} on the PyTorch reference"
        assert name in BY_PYTORCH or not watch.patterns, f"{name} of {family} made patterns of {watch.patterns[:3]}"
        entry["kernels"] = reached
    here = request.config.stash.setdefault(_records(), {}).setdefault(family, {}).setdefault(name, {})
    before = here.setdefault(str(dtype).removeprefix("torch."), entry)
    if "error" in entry and before is not entry:  # of several tests of one function the worst, and the kernels of all
        before.pop("refused", None)
        before["error"] = max(before.get("error", 0.0), entry["error"])
        if "kernels" in entry:
            before["kernels"] = sorted({*before.get("kernels", ()), *entry["kernels"]})
    _write(request.config)


@functools.cache
def _records() -> pytest.StashKey[dict]:
    """Where a run of pytest keeps what was recorded."""
    import pytest

    return pytest.StashKey()


def _write(config: pytest.Config) -> None:
    """Puts what was recorded into the file of --record-families; what did not run stays there as it is."""
    path = config.getoption("--record-families")
    if path is None or _records() not in config.stash:
        return
    file = Path(path)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for family, functions in config.stash[_records()].items():
        for name, found in functions.items():
            known.setdefault(family, {}).setdefault(name, {}).update(found)
    ordered = {f: {n: known[f][n] for n, _ in FUNCTIONS.values() if n in known[f]} for f in sorted(known)}
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")

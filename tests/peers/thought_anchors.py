"""The published code of Thought Anchors, loaded from a checkout, and run on a model and tokens of ours.

A checkout does not run as it stands (commit 2a15f77): its package imports a function that is nowhere defined, one file uses
`tqdm` without importing it, and KL is called with an argument that it does not take. It also loads its own models by name and
keeps every result on disk. Here its functions are taken one by one, from the files as they are.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

FOLDER = "THOUGHT_ANCHORS"
COMMIT = "2a15f778d11b2c3a12d0357f34000939b172066c"


def published() -> SimpleNamespace:
    """Its modules: attention, receivers, suppression, logits, models. Fails if there is no checkout."""
    if FOLDER not in os.environ:
        pytest.fail(
            f"{FOLDER} is not set; expected the folder of github.com/interp-reasoning/thought-anchors at commit {COMMIT[:7]}, "
            "which `make peers` checks out"
        )
    root = Path(os.environ[FOLDER]) / "whitebox-analyses"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    uncached = types.ModuleType("pkld")  # its decorator keeps results on disk
    uncached.pkld = lambda call=None, **_: call if call is not None else (lambda f: f)  # type: ignore[attr-defined]
    sentences = types.ModuleType("utils")  # needs more libraries; nothing of it is called
    sentences.sanity_check_sentences = sentences.split_solution_keep_spacing = None  # type: ignore[attr-defined]
    package = types.ModuleType("attention_analysis")
    package.__path__ = [str(root / "attention_analysis")]
    for module in (uncached, sentences, package):
        sys.modules.setdefault(module.__name__, module)
    found = {
        name: importlib.import_module(f"attention_analysis.{file}")
        for name, file in (
            ("attention", "attn_funcs"), ("receivers", "receiver_head_funcs"), ("suppression", "attn_supp_funcs"),
            ("logits", "logits_funcs"),
        )
    }  # fmt: skip
    found["logits"].tqdm = lambda items, **_: items
    return SimpleNamespace(**found, models=importlib.import_module("pytorch_models.analysis"))


class Numbers:
    """A tokenizer whose texts are token ids with spaces between them."""

    def __call__(self, text: str, return_tensors: str) -> BatchEncoding:
        ids = torch.tensor([[int(word) for word in text.split()]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(i) for i in ids]


def run(theirs: SimpleNamespace, hf: nn.Module, tokens: Tensor, span: tuple[int, int] | None = None) -> dict:
    """Attention weights (without a span) and logits of its forward pass, with attention of all heads to the span masked."""
    cfg = hf.config
    every = {l: list(range(cfg.num_attention_heads)) for l in range(cfg.num_hidden_layers)}
    return theirs.models.extract_attention_and_logits(
        hf, Numbers(), " ".join(map(str, tokens.tolist())), token_range_to_mask=None if span is None else list(span),
        mask_layers=None if span is None else every,
    )  # fmt: skip


def log_kl_matrix(theirs: SimpleNamespace, hf: nn.Module, trace, *, share: float | None = None, most: int = 100) -> np.ndarray:
    """Its matrix of suppression [later, earlier], without the diagonal and above.

    share: of each distribution the likeliest tokens that hold so much of it are kept, `most` at most, in float16 (0.9999 and
    100 as published); None: all logits in float32.
    """

    def kept(logits: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(logits.shape[-1]), logits[0, i]

    hf = copy.deepcopy(hf)  # its hooks leave their own forward methods in the modules
    pick = theirs.logits.decompress_logits_for_position if share else kept
    pack = (lambda x: theirs.logits.compress_logits_top_p(x, share, max_k=most)) if share else (lambda x: x)
    base, S = pack(run(theirs, hf, trace.tokens)["logits"]), trace.n_sentences
    out = np.full((S, S), np.nan)
    for j, span in enumerate(trace.spans().tolist()):
        cut = pack(run(theirs, hf, trace.tokens, span)["logits"])
        rows = [
            theirs.suppression.calculate_kl_divergence_sparse(pick(base, i), pick(cut, i), temperature=0.6)
            for i in range(len(trace))
        ]
        for i in range(j + 1, S):
            a, b = trace.spans()[i]
            out[i, j] = np.log(np.array(rows[a:b]) + 1e-9).mean()
    return out

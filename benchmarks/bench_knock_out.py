"""Knock-out curves and isolation on SmolLM2-135M: 8 examples of 10 steps, a few-shot block of about 575 tokens.

Ours answers every step of every example with one pass for each set of heads: the block once, then all solutions packed on it.
The baseline is what a user can do with hooks: one hooked Hugging Face forward of the whole solution for each example and set
(all steps read off it, the block computed again each time), of a few sets, times their number. The authors run one full prompt
for each step (`knock_out.authors_cost`), ten times more again.

    pytest benchmarks/bench_knock_out.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import knock_out_curve as knock_out
from pycotmech.cot.tools import cells, cost
from pycotmech.cot.tools.ablation import ablated_steps
from tests.reference.truth import hooked

pytestmark = [pytest.mark.benchmark(group="knock-out"), getattr(pytest.mark, "135m")]

N, SETS = 8, 12


def test_curve(benchmark, report):
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    cfg = model.cfg
    examples = pcm.cot.make_examples(N, tokenizer=model.tokenizer, bos=model.prepend_bos)
    graded = pcm.cot.grade(model, examples)
    means = pcm.cot.head_means(model, examples)
    scores = np.random.default_rng(0).normal(size=(cfg.n_layers, cfg.n_heads))
    chosen = cells.choose(model, examples, right=graded)

    # Correctness first: one set against hooked forwards of the same weights.
    heads = np.random.default_rng(1).random(scores.shape) < 0.5
    run = ablated_steps(model, chosen, mean=means)
    ours = run.answer(heads).right
    start = time.perf_counter()
    theirs = by_hooks(model, chosen, means, heads)
    hooks = (time.perf_counter() - start) * SETS
    differ = float(np.nanmean(ours != theirs, where=~np.isnan(theirs)))
    assert differ <= 0.02  # ties of two tokens may fall either way in float32

    call = lambda: knock_out.knock_out_curve(  # noqa: E731
        model, examples, scores, right=graded, mean=means, n_random=0
    )
    benchmark.pedantic(call, rounds=1, iterations=1)
    seconds = benchmark.stats.stats.min
    load = cost.workload(chosen)
    authors = knock_out.authors_cost(cfg, load, sizes=SETS)
    rows = knock_out.cost(cfg, load, n_random=0).token_forwards
    report(
        f"knock-out curve, {SETS} sets, {len(chosen)} steps",
        seconds,
        baseline="one hooked forward for each set and example",
        baseline_seconds=hooks,
        note=f"{rows:,.0f} token-forwards; the authors' loops need {authors.token_forwards:,.0f}",
    )


@torch.no_grad()
def by_hooks(model: pcm.Model, chosen: cells.Cells, means, heads) -> np.ndarray:
    """Right or not, [n, S], with one hooked forward of each whole solution."""
    D = model.cfg.d_head
    out = np.full(chosen.shape, np.nan)
    for e, example in enumerate(chosen.examples):
        roles, handles = means.roles[e], []
        for l, layer in enumerate(model.hf.model.layers):
            picked = [int(h) for h in np.flatnonzero(heads[l])]

            def replace(_module, args, l=l, picked=picked, roles=roles):
                x = args[0].clone()
                for h in picked:
                    x[0, :, h * D : (h + 1) * D] = means.z[l, roles, h]
                return (x,)

            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(replace))
        with hooked(*handles):
            best = model.hf(example.full_ids[None]).logits[0].argmax(-1)
        for s, step in enumerate(chosen.steps):
            span = example.steps[step].answer_span
            if chosen.right[e, s]:
                out[e, s] = float((best[span.start - 1 : span.stop - 1] == example.full_ids[span]).all())
    return out

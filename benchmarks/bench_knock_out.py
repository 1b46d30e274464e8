"""Knock-out curves and isolation on SmolLM2-135M: 8 examples of 10 steps, a few-shot block of about 575 tokens.

Ours answers every step of every example with one pass for each set of heads: the block once, then all solutions packed on it.
The baseline is what a user can do with hooks: one hooked Hugging Face forward of the whole solution for each example and set
(all steps read off it, logits where they are read only, the block computed again each time), of one set, times their number.
The authors run one full prompt for each step (`knock_out.authors_cost`), ten times more again.

    pytest benchmarks/bench_knock_out.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import time

import numpy as np
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import cells, cost, knock_out
from pycotmech.cot.analyses.ablation import ablated_steps
from tests.reference.truth import hooked

N, SETS = 8, 12


def test_curve(benchmark, report):
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    cfg = model.cfg
    examples = pcm.cot.make_examples(N, tokenizer=model.tokenizer, bos=model.prepend_bos)
    graded = pcm.cot.grade(model, examples)
    means = pcm.cot.head_means(model, examples)
    scores = np.random.default_rng(0).normal(size=(cfg.n_layers, cfg.n_heads))
    chosen = cells.choose(model, examples, right=graded)

    # Correctness first: one set against hooked forwards of the same weights, small enough that part of the steps stays right.
    heads = np.random.default_rng(1).random(scores.shape) < 0.1
    run = ablated_steps(model, chosen, mean=means)
    ours = run.answer(heads).right
    start = time.perf_counter()
    theirs = by_hooks(model, chosen, means, heads)
    hooks = (time.perf_counter() - start) * SETS
    told = ~np.isnan(theirs)
    assert 0.1 < theirs[told].mean() < 0.9, "the set leaves everything or nothing right, which tells nothing"
    assert (ours != theirs)[told].mean() <= 0.02  # two tokens that are nearly equal may fall either way in float32

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
        spans = [example.steps[step].answer_span for step in chosen.steps]
        first = min(span.start for span in spans) - 1
        with hooked(*handles):
            logits = model.hf(example.full_ids[None], logits_to_keep=len(example.full_ids) - first, use_cache=False).logits[0]
        best = logits.argmax(-1)
        for s, span in enumerate(spans):
            if chosen.right[e, s]:
                at = slice(span.start - 1 - first, span.stop - 1 - first)
                out[e, s] = float((best[at] == example.full_ids[span]).all())
    return out

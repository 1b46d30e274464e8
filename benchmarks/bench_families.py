"""The all-heads sweep on families other than Llama: a real Gemma 3, and cuts at the widths of three models of 7 to 9 billion.

Gemma 3 270M: about 640 tokens of the task, of which five layers of six see the last 512; all 72 heads, logit difference,
against one hooked forward pass for each head. Cold means that nothing is kept of an earlier call. Before anything is timed,
the sweep must agree with hooked forwards on the model as it is and, in float32 against float64, on its first seven layers; and
the windows must matter.

The cuts have two layers at the widths of Qwen2.5-7B, Llama-3.1-8B and Gemma-2-9B, in bfloat16 with random weights, whole
vocabularies included. Their sweeps are held against their own matrix products, run bare (benchmarks/bench_machine.py). The
largest takes about 12 GiB while it is checked against float32.

    pytest benchmarks/bench_families.py --benchmark-only [--threads 1] [-k gemma3]
"""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.bench_machine import measure
from benchmarks.by_hand import check_heads, hooked_forward, strongest_heads, widened
from benchmarks.conftest import best_of
from tests.reference.truth import double, logits_of, sweep_truth, z_of

ASKED = {("suffix", "cold"): 12.0, ("last", "cold"): 40.0, ("last", "warm"): 80.0}
"""Times one hooked forward per head, of Gemma 3 270M; a busy machine misses them by chance, so they are printed only."""
SAMPLE = 6
CUT = 7  # layers: five with windows, one without, and one above


@cache
def gemma3(dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained("gemma3-270m", dtype=dtype)


def prompts_of(model: pcm.Model) -> tuple[Tensor, Tensor, int, int]:
    """Clean, corrupted, answer, wrong of step 9, the last induction step: about 640 tokens, the few-shot part in common."""
    example = pcm.cot.make_examples(1, shots=8, seed=0, tokenizer=model.tokenizer, bos=model.prepend_bos)[0]
    step = example.steps[9]
    return step.clean, step.corrupted, int(step.answer), int(step.wrong)


@cache
def checked(dtype: str) -> str:
    """Asserts what must hold before Gemma 3 is timed; says how closely it does."""
    model = gemma3(dtype)
    clean, corrupted, answer, wrong = prompts_of(model)
    hf, window = model.hf, model.hf.config.sliding_window
    assert len(clean) > window, "the prompt is no longer than the windows, so they do nothing"
    seen = logits_of(hf, clean, keep=1)[0]
    hf.config.sliding_window = 10**6
    unseen = logits_of(hf, clean, keep=1)[0]
    hf.config.sliding_window = window
    matters = float((seen - unseen).abs().max())
    ours = model.run(clean, positions=-1).logits[0]
    off = float((ours - seen).abs().max())
    assert matters > 0.1 and off < (0.01 if dtype == "float32" else 0.5) * matters, (matters, off)
    if dtype != "float32":
        return f"windows move logits by {matters:.2g}, ours are {off:.1g} off"

    cut = copy.deepcopy(hf)
    cut.model.layers = cut.model.layers[:CUT]
    cut.config.num_hidden_layers = CUT
    cut.config.layer_types = cut.config.layer_types[:CUT]
    small = pcm.Model(cut, model.tokenizer, check=False)
    found = pcm.patch_heads(small, clean, corrupted, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)
    heads = [(l, (3 * l) % 4) for l in range(CUT)]

    def by_hooks(hf: nn.Module) -> np.ndarray:
        read = lambda x: float(x[answer].double() - x[wrong].double())  # noqa: E731
        truth = sweep_truth(hf, corrupted, clean, read, heads=heads)
        return np.array([truth[head] for head in heads]) - read(logits_of(hf, corrupted, keep=1)[0])

    truth, theirs = by_hooks(double(cut)), by_hooks(cut)
    ours = np.array([found.raw[head] for head in heads]) - float(found.corrupted_metric[0])
    largest = np.abs(found.raw - float(found.corrupted_metric[0])).max()
    error, rounding = np.abs(ours - truth).max() / largest, np.abs(theirs - truth).max() / largest
    assert error <= max(1e-4, rounding), (error, rounding, truth)
    return (
        f"windows move logits by {matters:.2g}, ours are {off:.1g} off; {CUT} layers in float32 within {error:.1e} of the "
        f"largest effect in float64, hooks within {rounding:.1e}"
    )


@pytest.mark.parametrize(("positions", "state"), list(ASKED))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gemma3(dtype, positions, state, benchmark, report, say):
    model = gemma3(dtype)
    said = checked(dtype)
    say(said)
    clean, corrupted, answer, wrong = prompts_of(model)
    T, first = len(clean), int((clean != corrupted).nonzero()[0])
    where = None if positions == "suffix" else [T - 1]
    arguments = dict(positions=where, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)
    sweep = pcm.patch_heads(model, clean, corrupted, **arguments)
    heads = strongest_heads(sweep.effect, SAMPLE)
    check_heads(model.hf, clean, corrupted, heads, sweep.effect, answer=answer, wrong=wrong, positions=where)
    widened.cache_clear()

    def swept() -> None:
        if state == "cold":
            model.prefixes.clear()
        pcm.patch_heads(model, clean, corrupted, **arguments)

    swept()
    benchmark.pedantic(swept, rounds=5, iterations=1)
    seconds = benchmark.stats.stats.min
    source_z = z_of(model.hf, clean)
    one = sum(best_of(2, lambda l=l, h=h: hooked_forward(model.hf, corrupted, source_z, l, h, where)) for l, h in heads)
    n = model.cfg.n_layers * model.cfg.n_heads
    runs = best_of(2, lambda: z_of(model.hf, clean))
    name = f"Gemma 3 270M, {dtype}, T = {T}, suffix {T - first}, {positions}, {state}: {n} heads"
    note = f"asked at least {ASKED[positions, state]:.0f}x"
    baseline = one / len(heads) * n + runs
    report(name, seconds, baseline="hooked forward per head", baseline_seconds=baseline, note=note)


# ---- cuts at the widths of large models ----------------------------------------------------------------------------------

_GAINS = {"q_proj": 1.5, "k_proj": 1.5, "down_proj": 0.5}
"""Of weights that would keep a variance of 1: peaked attention, and heads that move the logits beside the MLPs."""

_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

CUTS: dict[str, transformers.PretrainedConfig] = {
    "Qwen2.5-7B": transformers.Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=2, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "Llama-3.1-8B": transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rope_parameters=_LLAMA3,
    ),
    "Gemma-2-9B": transformers.Gemma2Config(
        vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096,
    ),
}  # fmt: skip


def random_model(config: transformers.PretrainedConfig) -> nn.Module:
    """In bfloat16, each weight drawn once, in place."""
    before, implementation = torch.get_default_dtype(), "eager" if config.model_type == "gemma2" else "sdpa"  # soft-caps
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    finally:
        torch.set_default_dtype(before)
    hf.tie_weights()
    hf.eval().requires_grad_(False)
    generator, gemma = torch.Generator().manual_seed(0), "gemma" in config.model_type
    for name, weight in hf.named_parameters():
        kind = name.split(".")[-2]
        if weight.ndim == 1:
            weight.fill_(0.0 if gemma or name.endswith("bias") else 1.0)
        else:
            # A tied embedding is both: Gemma multiplies it by the root of d_model where it is read.
            variance = 1 if "embed_tokens" in name and not gemma else _GAINS.get(kind, 1.0) ** 2 / weight.shape[1]
            weight.uniform_(-1, 1, generator=generator).mul_((3 * variance) ** 0.5)
    return hf


@pytest.mark.parametrize(("positions", "T"), [("last", 512), ("suffix", 640)])
@pytest.mark.parametrize("name", list(CUTS))
def test_cut(name, positions, T, benchmark, report, say):
    model = pcm.Model(random_model(CUTS[name]), check=False)
    clean, corrupted, where = llama7b.prompts(positions, T, model.cfg.d_vocab)
    arguments = llama7b.arguments(where)
    found = pcm.patch_heads(model, clean, corrupted, **arguments)
    words = dict(answer=llama7b.ANSWER, wrong=llama7b.WRONG)
    check_heads(model.hf, clean, corrupted, strongest_heads(found.effect, 2), found.effect, positions=where, **words)
    widened.cache_clear()
    say(f"{name}: checked; {llama7b.peak_gib():.1f} GiB at most so far")
    llama7b.forget_peak()
    del arguments["normalize"]  # `measure` says so itself
    title = f"{name} width, 2 layers, T = {T}, {positions}"
    benchmark.pedantic(lambda: measure(model, clean, corrupted, title, "llama", 3, report, **arguments), rounds=1)
    weights = sum(w.numel() * w.element_size() for w in model.hf.parameters()) / 2**30
    say(f"{title}: peak {llama7b.peak_gib():.1f} GiB, bare products included; {weights:.1f} GiB of weights")

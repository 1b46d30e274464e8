"""The shape of Llama-2 7B with random weights, and what a sweep over it is held against.

Two checks. `check_exactly`: a cut of a few layers at the true widths in float32, swept as it is timed, against one hooked
Hugging Face forward per head: the tolerance is 2e-4 of the largest effect, so a sweep that takes the layers, the heads or the
positions for one another fails. `check_rounding`: the whole model in bfloat16. There effects are not far above rounding, so
each head's effect on all logits is taken as a vector; those of the sweep are no further from float32 than those of hooked
Hugging Face forwards in bfloat16, and point where they should.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

import pycotmech as pcm
from pycotmech import ops
from tests.reference.truth import hooked, logits_of, patched_logits, z_of

SUFFIX = 40
ANSWER, WRONG = 7, 11
Head = tuple[int, int]

_GAINS = {"q_proj": 1.5, "k_proj": 1.5, "o_proj": 0.5, "down_proj": 0.5}
"""Of weights that would keep a variance of 1. Peaked attention, or every pattern is flat and a wrong head looks right; and
layers that add less than what the residual stream holds, or rounding grows from layer to layer until it is as large as any
effect, and any sweep is as close to float32 as any other."""

EXACT = 2e-4
"""Of the largest effect: how far a float32 sweep may be from hooked forwards in float32, each of which may be 1e-4 off."""


def shape(layers: int = 32, **sizes: int) -> LlamaConfig:
    """The configuration of Llama-2 7B with fewer layers, or other sizes."""
    return LlamaConfig(
        num_hidden_layers=layers, max_position_embeddings=4096, rms_norm_eps=1e-5, attn_implementation="sdpa", **sizes
    )


def random_llama(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device | str = "cpu", **gains: float
) -> LlamaForCausalLM:
    """Weights drawn once, in place, in their dtype and on the device; gains: in place of those of `_GAINS`."""
    gains = _GAINS | gains
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):
            hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in hf.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1)
            continue
        variance = 1 if "embed_tokens" in name else gains.get(name.split(".")[-2], 1.0) ** 2 / weight.shape[1]
        weight.uniform_(-1, 1, generator=generator).mul_((3 * variance) ** 0.5)
    return hf


@cache
def model(layers: int = 32) -> pcm.Model:
    """In bfloat16; drawn at the first call."""
    return pcm.Model(random_llama(shape(layers), torch.bfloat16), check=False)


def cut(layers: int = 3, **sizes: int) -> pcm.Model:
    """A few layers at the true widths (or `sizes`), in float32, with a small vocabulary. Attention adds more than in `model`:
    in so few layers rounding does not grow, and one head of 32 should move the logits well."""
    config = shape(layers, **{"vocab_size": 2000, **sizes})
    return pcm.Model(random_llama(config, torch.float32, o_proj=3.0), check=False)


def prompts(positions: str, T: int, d_vocab: int = 32000) -> tuple[Tensor, Tensor, list[int] | None]:
    """Clean, corrupted, positions to patch."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(d_vocab, (T,), generator=generator)
    corrupted = clean.clone()
    corrupted[T - SUFFIX :] = torch.randint(d_vocab, (SUFFIX,), generator=generator)
    if positions == "last":
        corrupted[-1] = clean[-1]
    return clean, corrupted, [T - 1] if positions == "last" else None


def arguments(where: list[int] | None) -> dict:
    """Those of the sweep that is timed and checked, besides the prompts."""
    return dict(positions=where, metric="logit_diff", answer=ANSWER, wrong=WRONG, normalize=False)


def part(cfg, n: int | None) -> list[Head] | None:
    """n heads, spread evenly over all; None: all."""
    total = cfg.n_layers * cfg.n_heads
    if n is None or n == total:
        return None
    if not 1 <= n <= total:
        raise ValueError(f"heads: got {n}; the model has {total}; expected 1..{total}")
    return [divmod(i * total // n, cfg.n_heads) for i in range(n)]


def sampled_heads(cfg, among: Sequence[Head] | None = None) -> list[Head]:
    """A head of the first layer, of the middle and of the last but one, which the baseline and the check run one by one."""
    among = among or [(l, h) for l in range(cfg.n_layers) for h in range(cfg.n_heads)]
    layers = sorted({0, cfg.n_layers // 2, max(cfg.n_layers - 2, 0)})
    nearest = lambda l: min(among, key=lambda x: (abs(x[0] - l), abs(x[1] - (5 + 7 * l) % cfg.n_heads)))  # noqa: E731
    return list(dict.fromkeys(map(nearest, layers)))


def read(logits: Tensor) -> Tensor:
    """The metric, on the CPU."""
    logits = logits.double().cpu()
    return logits[..., ANSWER] - logits[..., WRONG]


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# ---- the cut, in float32 -------------------------------------------------------------------------------------------


def check_exactly(model: pcm.Model, positions: str, T: int = 256, sweep: Callable[..., pcm.Sweep] = pcm.patch_heads) -> str:
    """Asserts that a float32 sweep over all heads agrees with one hooked forward for each of two heads in each layer, and
    that their effects are so far apart that no other head, layer or position could be taken for one. Says how closely."""
    cfg, hf = model.cfg, model.hf
    clean, corrupted, where = prompts(positions, T, cfg.d_vocab)
    found = sweep(model, clean, corrupted, **arguments(where))
    heads = [(l, (i + 7 * l) % cfg.n_heads) for l in range(cfg.n_layers) for i in (1, cfg.n_heads - 2)]
    source = z_of(hf, clean)
    base = float(read(logits_of(hf, corrupted, keep=1)[0]))
    truth = torch.stack([read(patched_logits(hf, corrupted, source, l, h, where)) for l, h in heads]) - base
    own = torch.tensor([found.raw[l, h] for l, h in heads]) - base
    largest = float(truth.abs().max())
    apart = [abs(float(a - b)) for i, a in enumerate(truth) for b in [0.0, *truth[:i]]]
    error = max(float((own - truth).abs().max()), abs(float(found.corrupted_metric[0]) - base))
    assert min(apart) > 5 * EXACT * largest, f"the effects {truth.tolist()} are too alike to distinguish heads"
    assert error <= EXACT * largest, f"effects of the sweep {own.tolist()}, of hooked forwards {truth.tolist()}"
    return (
        f"{cfg.n_layers} layers in float32, T = {T}, {positions}: {len(heads)} heads within {error / largest:.1e} of the "
        f"largest effect of one hooked forward each (at most {EXACT:.0e}), effects at least {min(apart) / largest:.3f} apart"
    )


# ---- the whole model, in bfloat16 ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByHand:
    """Last logits [2 + n, V] of the clean run, the corrupted run, and one hooked Hugging Face forward for each head."""

    heads: list[Head]
    logits: Tensor
    seconds: list[float]  # of each hooked forward


def waited(device: torch.device) -> float:
    """The time when a device is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def by_hand(model: pcm.Model, clean: Tensor, corrupted: Tensor, where: list[int] | None, heads: list[Head]) -> ByHand:
    hf, seconds = model.hf, []
    ends: list[Tensor] = []
    with hooked(hf.lm_head.register_forward_hook(lambda _module, _args, out: ends.append(out[0, -1]))):
        source = z_of(hf, clean)  # the clean run's logits on the way
    logits = [ends[0], logits_of(hf, corrupted, keep=1)[0]]
    for l, h in heads:
        start = waited(hf.device)
        logits.append(patched_logits(hf, corrupted, source, l, h, where))
        seconds.append(waited(hf.device) - start)
    return ByHand(heads, torch.stack(logits).cpu(), seconds)


@torch.no_grad()
def widened_logits(hf: nn.Module, clean: Tensor, corrupted: Tensor, heads: list[Head], where: list[int] | None) -> Tensor:
    """What `by_hand` gives, in float32 with the same weights: one layer is widened at a time, and all runs go through it.
    Below its edit a run is the corrupted run, and is not computed again."""
    base, D = hf.model, hf.model.layers[0].self_attn.head_dim
    at = slice(None) if where is None else where
    runs = dict(enumerate(base.embed_tokens(torch.stack((clean, corrupted)).to(hf.device)).float().split(1)))
    rotary = base.rotary_emb(runs[0], position_ids=torch.arange(len(clean), device=hf.device)[None])
    for l, layer in enumerate(base.layers):
        runs |= {2 + i: runs[1] for i, (layer_, _) in enumerate(heads) if layer_ == l}
        z_clean: list[Tensor] = []

        def patch(_module, args, run: int, l=l, z_clean=z_clean):
            z = args[0].unflatten(-1, (-1, D)).clone()
            if run == 0:
                z_clean.append(z)
            elif run > 1 and heads[run - 2][0] == l:
                h = heads[run - 2][1]
                z[0, at, h] = z_clean[0][0, at, h]
            return (z.flatten(-2),)

        wide = _widened(layer)
        for run in sorted(runs):
            x = runs[run]
            with hooked(wide.self_attn.o_proj.register_forward_pre_hook(functools.partial(patch, run=run))):
                x = x + wide.self_attn(wide.input_layernorm(x), position_embeddings=rotary, attention_mask=None)[0]
            runs[run] = x + wide.mlp(wide.post_attention_layernorm(x))
    n = _widened(base.norm)(torch.cat([runs[run][:, -1] for run in sorted(runs)]))
    return torch.cat([n @ rows.float().T for rows in hf.lm_head.weight.split(8192)], -1).cpu()


def _widened(module: nn.Module) -> nn.Module:
    """A float32 copy, whose products are made by the faster library."""
    wide = copy.deepcopy(module).float()
    for linear in wide.modules():
        if isinstance(linear, nn.Linear):
            linear.forward = functools.partial(ops.linear, weight=linear.weight, bias=linear.bias)
    return wide


def sweep_logits(
    model: pcm.Model, clean: Tensor, corrupted: Tensor, where: list[int] | None, heads: list[Head],
    sweep: Callable[..., pcm.Sweep] = pcm.patch_heads,
) -> Tensor:  # fmt: skip
    """What `by_hand` gives, of a sweep over these heads: what it reads its metric from."""
    seen: list[Tensor] = []

    def metric(logits: Tensor) -> Tensor:
        seen.append(logits.cpu().clone())
        return read(logits)

    found = sweep(model, clean, corrupted, positions=where, metric=metric, normalize=False, heads=heads, return_logits=True)
    assert len(seen[0]) == 2, "the metric is read of the two runs first"
    return torch.cat((seen[0], torch.stack([found.logits[l, h].cpu() for l, h in heads])))


def check_rounding(
    model: pcm.Model,
    clean: Tensor,
    corrupted: Tensor,
    where: list[int] | None,
    found: pcm.Sweep,
    theirs: ByHand,
    sweep: Callable[..., pcm.Sweep] = pcm.patch_heads,
) -> str:
    """Asserts that the sweep `found` is as close to float32 as hooked forwards in the model's dtype are. Says how close.

    Of both prompts the logits are; of the sampled heads the effects on all logits are, and lie along the true ones, which
    no two heads share; and the metrics of `found` are those of these logits, but for what rounding moves an effect by.
    """
    heads = theirs.heads
    truth = widened_logits(model.hf, clean, corrupted, heads, where).double()
    hand, ours = theirs.logits.double(), sweep_logits(model, clean, corrupted, where, heads, sweep).double()
    rounding = rms(hand[:2] - truth[:2])
    runs = rms(ours[:2] - truth[:2]) / rounding
    assert runs <= 1.1, f"logits of the prompts are {runs:.2f} times as far from float32 as those of Hugging Face"

    effect = {name: x[2:] - x[1] for name, x in (("truth", truth), ("hand", hand), ("ours", ours))}
    unit = {name: nn.functional.normalize(x, dim=-1) for name, x in effect.items()}
    others = (unit["truth"] @ unit["truth"].T).fill_diagonal_(0).abs().max()
    along = (unit["ours"] * unit["truth"]).sum(-1)
    off = {n: (x - effect["truth"]).norm(dim=-1) / effect["truth"].norm(dim=-1) for n, x in effect.items()}
    said = (
        f"logits {runs:.2f} times as far from float32 as Hugging Face's; effects of {heads} off by "
        f"{_figures(off['ours'])} of their size, of hooked forwards {_figures(off['hand'])}; cosines {_figures(along)}, "
        f"between heads at most {float(others):.2f}"
    )
    assert rms(off["ours"]) <= 1.1 * rms(off["hand"]), said
    assert float(along.min()) > 0.3 + float(others) / 2, f"the effects are not those of these heads: {said}"
    swept = torch.tensor([found.clean_metric[0], found.corrupted_metric[0], *[found.raw[l, h] for l, h in heads]])
    gap = float((swept - read(ours)).abs().max())
    moved = float((effect["ours"] - effect["truth"]).square().mean(-1).sqrt().max())
    assert gap <= 2 * moved, f"the sweep reads {swept.tolist()}, its logits say {read(ours).tolist()}: {said}"
    return said


def _figures(x: Tensor) -> str:
    return "/".join(f"{v:.2f}" for v in x.tolist())


# ---- the machine ---------------------------------------------------------------------------------------------------


def forget_peak() -> None:
    """What is the process's peak memory from now on (Linux)."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def peak_gib() -> float:
    """VmHWM (Linux)."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 2**20


@contextmanager
def staircase_seconds() -> Iterator[list[float]]:
    """Seconds of each staircase, from the joins to the metric: what a sweep takes beyond the runs of the prompts."""
    from pycotmech.engine.evaluate import Evaluator

    seconds: list[float] = []
    run = Evaluator.run

    @functools.wraps(run)
    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = run(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    Evaluator.run = timed
    try:
        yield seconds
    finally:
        Evaluator.run = run

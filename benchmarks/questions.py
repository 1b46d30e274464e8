"""The questions of the suite: each with our call, its check, and what a user could do in its place.

`suite.py` times them side by side, `bench_questions.py` with pytest-benchmark. A question is made for a dtype and gives
`Asked`: ours, its rivals, and a check that runs before anything is timed and raises AssertionError if ours or a rival is wrong.
Rivals are run for a sample, spread over layers or positions, and their times are multiplied; `Way.times` says by what.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

import pycotmech as pcm
from benchmarks import bench_attention, bench_paths, by_hand, llama7b
from pycotmech import cost
from pycotmech.cost import Demand
from pycotmech.traces import Trace
from tests.reference.truth import kl, z_of

SIZES = ("tiny", "135m", "7b")
LAYERS_7B = 2
"""Of Llama-2 7B's shape, in the suite: 1.4 GiB in bfloat16. All of it is in bench_llama7b.py."""


@dataclass(frozen=True)
class Way:
    """One way to answer a question. run: a sample of it; times: how often the sample goes into the whole; once: a run that the
    whole needs one time beside (None: nothing)."""

    name: str
    run: Callable[[], object]
    times: float = 1.0
    once: Callable[[], object] | None = None


@dataclass(frozen=True)
class Asked:
    """A question, ready to be asked. check: says how well ours agrees, or raises. demand: what ours needs, for its share of the
    machine; products: whether the products of ours are recorded and run bare for that (`machine.recorded`)."""

    ours: Way
    rivals: list[Way]
    check: Callable[[], str]
    cfg: object
    demand: Demand
    products: bool = False
    note: str = ""


@dataclass(frozen=True)
class Question:
    """name: of the question; group: by which results are compared; rounds: how often every way is timed."""

    name: str
    group: str
    size: str
    make: Callable[[str], Asked]
    dtypes: tuple[str, ...] = ("float32",)
    rounds: int = 3


@cache
def load(name: str, dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained(name, dtype=dtype)


def _close(ours, theirs, limit: float, what: str) -> str:
    """Says how far apart values are, of the largest of them; AssertionError if that is more than the limit, or if there is
    nothing to compare."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    size, error = np.abs(theirs).max(), np.abs(ours - theirs).max()
    assert size > 0 and error <= limit * size, (
        f"{what}: {error:.3g} apart where {size:.3g} is the largest; at most {limit * size:.3g}"
    )
    return f"{what} within {error / size:.1e} of the largest"


# ---- patching ----------------------------------------------------------------------------------------------------------


def _heads(name: str, positions: str, sample: int, dtype: str) -> Asked:
    """All heads, one at a time; the logit difference at the last position."""
    model = load(name, dtype)
    shots = {} if name != "tiny-cot" else {"shots": 4}
    clean, corrupted, answer, wrong = by_hand.prompt_pair(model.tokenizer, **shots)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    first = int((clean != corrupted).nonzero()[0])
    where = None if positions == "all" else [T - 1]
    options = dict(positions=where, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)
    found = pcm.patch_heads(model, clean, corrupted, **options)
    heads = by_hand.strongest_heads(found.effect, min(sample, cfg.n_layers))
    source, prefix = z_of(hf, clean), by_hand.cache_of(hf, corrupted[:first])
    read = dict(answer=answer, wrong=wrong, positions=where)

    def ours() -> None:
        model.prefixes.clear()
        pcm.patch_heads(model, clean, corrupted, **options)

    def check() -> str:
        by_hand.check_heads(hf, clean, corrupted, heads, found.effect, **read)
        theirs = np.full(found.shape, np.nan)
        zero = by_hand.logit_difference(by_hand.cached_forward(hf, prefix, corrupted, source, 0, 0, first, []), answer, wrong)
        for l, h in heads:
            patched = by_hand.cached_forward(hf, prefix, corrupted, source, l, h, first, where)
            theirs[l, h] = by_hand.logit_difference(patched, answer, wrong) - zero
        by_hand.check_heads(hf, clean, corrupted, heads, theirs, **read)
        return f"{len(heads)} heads against hooked forwards"

    def hooks() -> None:
        for l, h in heads:
            by_hand.hooked_forward(hf, corrupted, source, l, h, where)

    def cached() -> None:
        for l, h in heads:
            by_hand.cached_forward(hf, prefix, corrupted, source, l, h, first, where)

    n = cfg.n_layers * cfg.n_heads
    rivals = [
        Way("one hooked forward for each head", hooks, n / len(heads), once=lambda: z_of(hf, clean)),
        Way("hooks over a cache of the prefix", cached, n / len(heads), once=lambda: z_of(hf, clean)),
    ]
    demand = cost.of_plan(cfg, found.plan, metric="logit_diff")
    note = f"T = {T}, suffix {T - first}, {n} heads"
    return Asked(Way("pycotmech", ours), rivals, check, cfg, demand, products=True, note=note)


def _residual(dtype: str) -> Asked:
    """The residual stream of every layer at every position of the suffix, one at a time."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, *_ = by_hand.prompt_pair(model.tokenizer)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    options = dict(site="resid_pre", metric="kl", normalize=False)
    found = pcm.patch_residual(model, clean, corrupted, **options)
    runs = [model.run(t, capture=("resid_pre",), positions=[-1]) for t in (clean, corrupted)]
    source = runs[0]["resid_pre"]
    suffix = int((clean != corrupted).nonzero()[0])
    places = [(int(l), T - 1 - int(i)) for l, i in zip(np.linspace(0, cfg.n_layers - 1, 4), np.linspace(0, T - 1 - suffix, 4))]

    def hooked(l: int, p: int) -> torch.Tensor:
        def replace(_module, args, kwargs):
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            x[0, p] = source[l, p].to(x.dtype)
            return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": x})

        handle = hf.model.layers[l].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            with torch.no_grad():
                return hf(corrupted[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        finally:
            handle.remove()

    def ours() -> None:
        model.prefixes.clear()
        pcm.patch_residual(model, clean, corrupted, **options)

    def check() -> str:
        with torch.no_grad():
            clean_logits = hf(clean[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        theirs = [kl(clean_logits, hooked(l, p)) for l, p in places]
        return _close([found.raw[l, p] for l, p in places], theirs, 1e-3, f"{len(places)} entries and hooked forwards")

    hooks = Way(
        "one hooked forward for each entry",
        lambda: [hooked(l, p) for l, p in places],
        cfg.n_layers * (T - suffix) / len(places),
    )
    note = f"T = {T}, {cfg.n_layers} layers x {T - suffix} positions"
    demand = cost.of_plan(cfg, found.plan, metric="kl")
    return Asked(Way("pycotmech", ours), [hooks], check, cfg, demand, products=True, note=note)


def _pairs(dtype: str, n: int = 20) -> Asked:
    """Many pairs that share their few-shot block, last position, in one call."""
    model = load("smollm2-135m", dtype)
    examples = pcm.cot.make_examples(n // 10, shots=8, seed=0, tokenizer=model.tokenizer)
    steps = [step for example in examples for step in example.steps][:n]

    def call(chosen: list) -> pcm.Sweep:
        model.prefixes.clear()
        lists = {name: [getattr(s, name) for s in chosen] for name in ("clean", "corrupted", "answer", "wrong")}
        return pcm.patch_heads(model, **lists, positions=[-1], metric="logit_diff", normalize=False)

    together = call(steps)
    sample = [steps[i] for i in np.linspace(0, len(steps) - 1, 4).round().astype(int)]

    def check() -> str:
        worst = 0.0
        for step in sample:
            i, alone = steps.index(step), call([step])
            change = alone.raw[0] - alone.corrupted_metric
            error = np.abs(together.raw[i] - together.corrupted_metric[i] - change)
            # Two roundings of the same prompt part by some units of a 16-bit model's noise.
            off = error.max() if dtype == "float32" else np.sqrt((error**2).mean())
            worst = max(worst, off / np.abs(change).max())
            assert worst <= (1e-4 if dtype == "float32" else 0.05), (i, worst)
        return f"{len(sample)} pairs within {worst:.1e} of the largest effect of a call for each"

    single = Way("one cold call for each pair", lambda: [call([step]) for step in sample], len(steps) / len(sample))
    demand = cost.of_plan(model.cfg, together.plan, metric="logit_diff")
    return Asked(
        Way("pycotmech", lambda: call(steps)), [single], check, model.cfg, demand, products=True, note=f"{len(steps)} pairs"
    )


def _paths(dtype: str) -> Asked:
    """From a tenth of the heads to q, k and v of every head above, at the last position."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, answer, wrong = by_hand.prompt_pair(model.tokenizer)
    cfg = model.cfg
    every = [(l, h) for l in range(cfg.n_layers) for h in range(cfg.n_heads)]
    senders = every[::10]
    options = dict(metric="logit_diff", answer=answer, wrong=wrong, normalize=False)
    call = lambda: pcm.path_patch(model, clean, corrupted, senders=senders, receivers="all", positions="read", **options)  # noqa: E731
    found = call()
    plain, cached = (bench_paths.HookedPaths(model.hf, corrupted, clean, cached=c) for c in (False, True))
    zero = by_hand.logit_difference(plain.final(corrupted), answer, wrong)
    usable = [s for s in senders if s[0] < cfg.n_layers - 2]
    sample = [(s, (s[0] + 1 + (cfg.n_layers - 2 - s[0]) // 2, 3), "q") for s in usable[:: max(1, len(usable) // 4)]][:4]

    def both(way: bench_paths.HookedPaths) -> list[float]:
        measured = []
        for sender, receiver, given in sample:
            logits = way.second(way.first(sender), receiver, given)
            measured.append(by_hand.logit_difference(logits, answer, wrong) - zero)
        return measured

    def check() -> str:
        ours = [found.path(s, r, i) for s, r, i in sample]
        largest = max(np.abs(found.effect).max(), 1e-12)
        for way in (plain, cached):
            error = np.abs(np.subtract(ours, both(way))).max()
            assert error <= 1e-3 * largest, (ours, error, largest)
        return f"{len(sample)} paths within {error / largest:.1e} of the largest effect"

    def ours() -> None:
        model.prefixes.clear()
        call()

    n = 3 * cfg.n_heads * sum(cfg.n_layers - 1 - l for l, _ in senders)
    arrived = {s: cached.first(s) for s, _, _ in sample}

    def seconds() -> None:
        for s, r, i in sample:
            cached.second(arrived[s], r, i)

    rivals = [
        Way("two hooked forwards for each path", lambda: both(plain), n / len(sample)),
        Way(
            "hooks on the last token over a cache, the first forward kept",
            seconds,
            n / len(sample),
            once=lambda: [cached.first(s) for s in senders],
        ),
    ]
    demand = cost.of_plan(cfg, found.plan, metric="logit_diff") + cost.prompts(cfg, [len(clean)] * 2)
    return Asked(Way("pycotmech", ours), rivals, check, cfg, demand, products=True, note=f"{len(senders)} senders, {n} paths")


def _heads_7b(dtype: str) -> Asked:
    """All heads of two layers at the widths of Llama-2 7B, T = 512, last position."""
    model = llama7b.model(LAYERS_7B)
    clean, corrupted, where = llama7b.prompts("last", 512)
    given, cfg = llama7b.arguments(where), model.cfg
    found = pcm.patch_heads(model, clean, corrupted, **given)
    heads = llama7b.sampled_heads(cfg)
    hand = llama7b.by_hand(model, clean, corrupted, where, heads)
    source = z_of(model.hf, clean)

    def ours() -> None:
        model.prefixes.clear()
        pcm.patch_heads(model, clean, corrupted, **given)

    def hooks() -> None:
        for l, h in heads:
            by_hand.hooked_forward(model.hf, corrupted, source, l, h, where)

    n = cfg.n_layers * cfg.n_heads
    rival = Way("one hooked forward for each head", hooks, n / len(heads), once=lambda: z_of(model.hf, clean))
    check = lambda: llama7b.check_rounding(model, clean, corrupted, where, found, hand)  # noqa: E731
    demand = cost.of_plan(cfg, found.plan, metric="logit_diff")
    note = f"{cfg.n_layers} layers of 32, {n} heads, T = 512"
    return Asked(Way("pycotmech", ours), [rival], check, cfg, demand, products=True, note=note)


# ---- attention ---------------------------------------------------------------------------------------------------------


def _summary(dtype: str, T: int = 1024) -> Asked:
    """Masses, entropy, 8 top keys and attention received of every row, head and layer."""
    model = load("smollm2-135m", dtype)
    hf, cfg = model.hf, model.cfg
    tokens = torch.randint(3, cfg.d_vocab, (T,), generator=torch.Generator().manual_seed(1))
    segments = {"early": slice(1, T // 4), "middle": slice(T // 4, T // 2), "late": slice(T // 2, T)}
    call = lambda: pcm.attention_summary(model, tokens, segments=segments, top_k=8)  # noqa: E731
    before = hf.config._attn_implementation

    def forward(implementation: str, **more):
        hf.set_attn_implementation(implementation)
        try:
            with torch.no_grad():
                return hf(tokens[None], use_cache=False, logits_to_keep=1, **more)
        finally:
            hf.set_attn_implementation(before)

    def eager() -> None:
        """The patterns, a layer at a time, and the same statistics of each."""
        patterns = forward("eager", output_attentions=True).attentions
        for p in patterns:
            p = p[0].float()
            groups = [p[..., s].sum(-1) for s in (*segments.values(), slice(0, 1))]
            _ = groups, torch.special.entr(p).sum(-1), p.topk(8, -1), p.sum(1)

    def check() -> str:
        found, patterns = call(), forward("eager", output_attentions=True).attentions
        off: list[np.ndarray] = []
        for l in (0, cfg.n_layers // 2, cfg.n_layers - 1):
            p = patterns[l][0, :, -8:].double()
            mass = torch.stack([p[..., s].sum(-1) for s in (*segments.values(), slice(0, 1))], -1).numpy()
            entropy = torch.special.entr(p).sum(-1).numpy()
            off += [found.mass[l, :, -8:] - mass, (found.entropy[l, :, -8:] - entropy) / entropy.max()]
        error = np.abs(np.concatenate([x.ravel() for x in off]))
        # In bfloat16 both round in every layer: single entries part by much, all of them by little.
        worst, limit = (error.max(), 1e-3) if dtype == "float32" else (np.sqrt((error**2).mean()), 0.05)
        assert worst <= limit, (worst, limit)
        return f"masses and entropies of three layers within {worst:.1e} of eager patterns"

    rivals = [
        Way("eager patterns and the same statistics", eager),
        Way("a forward with SDPA, no statistics", lambda: forward("sdpa")),
    ]
    return Asked(Way("pycotmech", call), rivals, check, cfg, cost.summary(cfg, T), note=f"T = {T}, all rows, layers and heads")


def _kernel(dtype: str) -> Asked:
    """One layer's attention at the shape of Llama-2 7B with all statistics."""
    x = bench_attention.inputs(bench_attention.DTYPES[dtype])
    H, T, D = bench_attention.H, bench_attention.T, bench_attention.D
    cfg = replace(cost.without_weights(llama7b.shape(1)).cfg, dtype=bench_attention.DTYPES[dtype])

    def check() -> str:
        bench_attention.check(x)
        return "two heads against float64"

    rivals = [
        Way("eager and the same statistics", lambda: bench_attention.eager(x)),
        Way("SDPA, z alone", lambda: bench_attention.fused(x)),
    ]
    demand = Demand(keys=T * (T + 1) / 2)
    note = f"{H} heads of {D}, T = {T}"
    return Asked(Way("attn_extract", lambda: bench_attention.ours(x)), rivals, check, cfg, demand, note=note)


def _lens(dtype: str) -> Asked:
    """The logit lens of a prompt at every layer and position of its suffix."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, answer, _ = by_hand.prompt_pair(model.tokenizer)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    at = list(range(int((clean != corrupted).nonzero()[0]), T))
    call = lambda: pcm.logit_lens(model, clean, positions=at, answer=answer)  # noqa: E731

    @torch.no_grad()
    def by_states() -> list[torch.Tensor]:
        states = hf(clean[None], use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states[1:]
        found = []
        for i, x in enumerate(states):  # the last one is normed already
            x = x[0, at]
            x = x if i == cfg.n_layers - 1 else hf.model.norm(x)
            logits = F.linear(x.float(), hf.lm_head.weight.float())
            p = logits.softmax(-1)
            _ = p.topk(5, -1), torch.special.entr(p).sum(-1)
            found.append(p[:, answer])
        return found

    def check() -> str:
        theirs = torch.stack(by_states(), 1).double().numpy()
        return _close(
            call().probabilities[..., 0], theirs, 1e-3 if dtype == "float32" else 0.1, "probabilities and those of states"
        )

    demand = cost.prompts(cfg, [T], read=float(len(at) * cfg.n_layers))
    rival = Way("hidden states, norm and unembedding by hand", by_states)
    return Asked(Way("pycotmech", call), [rival], check, cfg, demand, products=True, note=f"T = {T}, {len(at)} positions")


def _suppression(dtype: str, T: int = 600, prompt: int = 200, n: int = 20) -> Asked:
    """Each sentence of a trace cut from all that follows it."""
    model = load("smollm2-135m", dtype)
    hf, cfg = model.hf, model.cfg
    tokens = torch.randint(10, cfg.d_vocab - 10, (T,), generator=torch.Generator().manual_seed(0))
    ends = np.linspace(prompt, T, n + 1).round().astype(int).tolist()
    trace = Trace.from_tokens(model, tokens, sentences=list(itertools.pairwise(ends)))
    spans = trace.spans().tolist()
    call = lambda: pcm.traces.suppress(model, trace, controls=0)  # noqa: E731
    sample = [0, n // 2, n - 2]
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    @torch.no_grad()
    def masked() -> list[list[float]]:
        base = hf(tokens[None], use_cache=False).logits[0]
        found = []
        for j in sample:
            a, b = spans[j]
            mask = causal.clone()
            mask[b:, a:b] = False
            logits = hf(tokens[None], attention_mask=mask[None, None], use_cache=False, logits_to_keep=T - b).logits[0]
            p, q = torch.log_softmax(base[b:].float(), -1), torch.log_softmax(logits.float(), -1)
            rows = (p.exp() * (p - q)).sum(-1)
            found.append([float(rows[c - b : d - b].mean()) for c, d in spans[j + 1 :]])
        return found

    def check() -> str:
        ours = call().values
        theirs = masked()
        flat = np.concatenate([ours[j + 1 :, j] for j in sample]), np.concatenate(theirs)
        return _close(*flat, 0.02, "divergences and those of masked forwards")

    rival = Way("one masked SDPA forward for each sentence", masked, (n - 1) / len(sample))
    demand = cost.suppression(cfg, T, spans)
    return Asked(Way("pycotmech", call), [rival], check, cfg, demand, products=True, note=f"T = {T}, {n} sentences")


def _named(make: Callable[..., Asked], *given) -> Callable[[str], Asked]:
    return lambda dtype: make(*given, dtype)


BOTH = ("float32", "bfloat16")
QUESTIONS = (
    Question("all heads, all positions", "heads", "135m", _named(_heads, "smollm2-135m", "all", 4), BOTH, rounds=2),
    Question("all heads, last position", "heads", "135m", _named(_heads, "smollm2-135m", "last", 4), BOTH),
    Question("all heads, all positions", "heads", "tiny", _named(_heads, "tiny-cot", "all", 3), rounds=5),
    Question("all heads, last position", "heads", "7b", _heads_7b, ("bfloat16",)),
    Question("residual stream by position", "residual", "135m", _residual, rounds=2),
    Question("many pairs in one call", "pairs", "135m", _pairs, ("bfloat16",)),
    Question("sender-receiver paths", "paths", "135m", _paths),
    Question("attention summary", "attention", "135m", _summary),
    Question("attention kernel", "kernel", "7b", _kernel, BOTH),
    Question("logit lens", "lens", "135m", _lens),
    Question("suppression of sentences", "traces", "135m", _suppression),
)
"""In the order of the table. More: bench_*.py, each about one question."""


def question_named(name: str, size: str) -> Question:
    """Raises ValueError for a question that there is not."""
    for question in QUESTIONS:
        if (question.name, question.size) == (name, size):
            return question
    raise ValueError(f"question: there is no {name!r} at size {size!r}")

"""The cases that every kernel is held to, in the interpreter (tests/kernels/interp) and on a GPU (tests/kernels/gpu).

A case builds its arguments on the CPU from a fixed seed; `check_*` runs the op through `run(name, *args)`, which is the
Triton wrapper itself in the interpreter and the registered op on a GPU, and compares with float64 on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.kernels import dense
from tests.kernels.poison import islands

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Relative errors in the norm. z is rounded once to its dtype; its weights are rounded to that dtype before they meet
# the values. Statistics are float32 whatever the dtype; weights that go through segments keep 16 bits (24 for float32
# inputs).
Z = {"bf16": 3e-3, "fp16": 4e-4, "fp32": 1e-6}
STATISTICS = {"lse": 1e-6, "pmax": 2e-6, "entropy": 1e-6, "topk_p": 2e-6}
COLUMNS = {"bf16": 5e-6, "fp16": 5e-6, "fp32": 1e-6}
ON_GPU = 4.0
"""Tensor cores add in another order and with fewer guard bits than the interpreter: tolerances widen by this there."""

Run = Callable[..., object]


def base(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int, dtype: str = "fp32") -> Tensor:
    return torch.randn(*shape, generator=g).to(DTYPES[dtype])


def close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Equal shapes, equal infinities, no NaN, and a relative error in the norm of at most `tolerance`."""
    got = got.detach().cpu().double()
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    finite = want.isfinite()
    assert torch.equal(got[~finite], want[~finite]), f"{name}: infinities differ"
    error, size = (got - want)[finite].norm().item(), want[finite].norm().item()
    assert error <= tolerance * size, f"{name}: relative error {error / max(size, 1e-300):.2e} > {tolerance:.0e}"


ATTENTION = {
    # name: dtype, B, H, Hkv, T, S, D and what is asked; `scale` multiplies D ** -0.5; large scores round more: `slack`
    "plain": dict(dtype="bf16", H=2, Hkv=2, T=100, S=100, D=64),
    "suffix_gqa": dict(dtype="bf16", B=2, H=2, Hkv=1, T=77, S=131, D=128, segments=5, entropy=True, topk=8),
    "one_row": dict(dtype="bf16", H=3, Hkv=1, T=1, S=131, D=64, segments=3, entropy=True, topk=3),
    "one_key": dict(dtype="fp16", H=2, Hkv=2, T=1, S=1, D=32, segments=1, entropy=True, topk=2, readout=1),
    "d80": dict(dtype="bf16", H=2, Hkv=1, T=77, S=131, D=80, segments=16, entropy=True),
    "d96_fp16": dict(dtype="fp16", H=2, Hkv=2, T=100, S=131, D=96, entropy=True, topk=1),
    "d256": dict(dtype="bf16", H=1, Hkv=1, T=77, S=77, D=256, segments=4, entropy=True),
    "d40": dict(dtype="bf16", H=2, Hkv=2, T=33, S=50, D=40, entropy=True),
    "fp32": dict(dtype="fp32", H=2, Hkv=1, T=77, S=131, D=64, segments=7, entropy=True, topk=5, readout=3),
    "fp32_d128": dict(dtype="fp32", H=1, Hkv=1, T=40, S=67, D=128, segments=2, entropy=True),
    "padded": dict(dtype="bf16", B=3, H=2, Hkv=1, T=131, S=131, D=64, starts=(0, 70, 131), segments=3, topk=4),
    "padded_long": dict(dtype="bf16", B=2, H=1, Hkv=1, T=300, S=300, D=32, starts=(0, 170), entropy=True),
    "window": dict(dtype="bf16", H=2, Hkv=2, T=150, S=200, D=64, window=37, segments=3, entropy=True, topk=4),
    "window_1": dict(dtype="fp32", H=1, Hkv=1, T=70, S=70, D=32, window=1, entropy=True, topk=2),
    "softcap": dict(dtype="bf16", H=2, Hkv=1, T=77, S=77, D=64, softcap=3.0, scale=4.0, entropy=True, topk=3),
    "everything": dict(
        dtype="bf16", B=2, H=3, Hkv=1, T=100, S=131, D=64, starts=(3, 60), window=50, softcap=5.0, segments=5,
        per_sequence=True, readout=3, entropy=True, topk=8, scale=2.0,
    ),
    "many_columns": dict(dtype="bf16", H=1, Hkv=1, T=40, S=150, D=32, segments=131, readout=70, topk=2),
    "peaked": dict(dtype="fp32", H=1, Hkv=1, T=77, S=131, D=64, scale=40.0, slack=8.0, entropy=True, topk=8),
    "negative_scale": dict(dtype="bf16", H=2, Hkv=2, T=40, S=40, D=64, scale=-1.0, entropy=True, topk=3),
    "sinks": dict(
        dtype="bf16", B=2, H=6, Hkv=2, T=77, S=131, D=64, starts=(0, 131), segments=5, readout=2, entropy=True, topk=8,
        sinks=(-40.0, 0.5, 2.0, 5.0, 60.0, 1.0),
    ),
    "sinks_fp32": dict(
        dtype="fp32", H=2, Hkv=1, T=77, S=77, D=64, window=30, softcap=4.0, scale=3.0, segments=3, entropy=True, topk=2,
        sinks=(1.0, 3.0),
    ),
    "scale_0": dict(dtype="bf16", H=2, Hkv=2, T=40, S=40, D=64, scale=0.0, segments=2, entropy=True, topk=3),
}  # fmt: skip


def attention(name: str) -> tuple[dict, dict]:
    """A case's tensors and options by name."""
    case = {
        "B": 1,
        "starts": None,
        "window": 0,
        "softcap": 0.0,
        "segments": 0,
        "readout": 0,
        "entropy": False,
        "topk": 0,
    }
    case |= {"scale": 1.0, "sinks": None, "per_sequence": False, "slack": 1.0, **ATTENTION[name]}
    g = base(len(name))
    B, H, Hkv, T, S, D, dtype = (case[x] for x in ("B", "H", "Hkv", "T", "S", "D", "dtype"))
    labels = (B, S) if case["per_sequence"] else (S,)
    tensors = {
        "q": normal(g, B, H, T, D, dtype=dtype),
        "k": normal(g, B, Hkv, S, D, dtype=dtype),
        "v": normal(g, B, Hkv, S, D, dtype=dtype),
        "segments": torch.randint(-1, case["segments"], labels, generator=g).int() if case["segments"] else None,
        "readout": normal(g, 1, H, S, case["readout"]) if case["readout"] else None,
        "starts": None if case["starts"] is None else torch.tensor(case["starts"], dtype=torch.int32),
        "sinks": None if case["sinks"] is None else torch.tensor(case["sinks"]),
    }
    case["scale"] *= D**-0.5
    return tensors, case


def check_extract(run: Run, name: str, slack: float = 1.0) -> None:
    t, case = attention(name)
    options = (case["scale"], case["entropy"], case["topk"], case["window"], case["softcap"], t["sinks"])
    tail = (case["segments"], t["readout"], t["starts"], *options)
    want = dense.extract(t["q"], t["k"], t["v"], t["segments"], *tail)
    args = islands((t["q"], t["k"], t["v"], t["segments"], *tail))
    names = ("z", "lse", "pmax", "entropy", "mass", "read", "topk_p", "topk_i")
    got = dict(zip(names, run("attn_extract", *args), strict=True))
    tolerance = {**STATISTICS, "z": Z[case["dtype"]], "mass": COLUMNS[case["dtype"]], "read": COLUMNS[case["dtype"]]}
    for key in names[:-1]:
        if key in want:
            close(key, got[key], want[key], slack * case["slack"] * tolerance[key])
        else:
            assert got[key].numel() == 0, f"{key} was not asked for, got shape {tuple(got[key].shape)}"
    assert got["z"].dtype == t["q"].dtype
    if case["topk"]:
        check_top(got["topk_i"].cpu(), want)


def check_top(index: Tensor, want: dict[str, Tensor]) -> None:
    """The right keys; where two scores are closer than rounding, either order."""
    assert index.dtype == torch.int32
    assert torch.equal(index < 0, want["topk_i"] < 0), "unused slots differ"
    at = index.long().clamp_min(0)
    got = torch.where(index < 0, 0.0, want["scores"].gather(-1, at))
    best = torch.where(want["topk_i"] < 0, 0.0, want["scores"].gather(-1, want["topk_i"].clamp_min(0)))
    torch.testing.assert_close(got, best, rtol=2e-6, atol=2e-6)
    filled = torch.where(index < 0, -1 - torch.arange(index.shape[-1], dtype=torch.int32), index).sort(-1).values
    assert (filled.diff(dim=-1) > 0).all(), "a key is named twice"


def check_ties(run: Run) -> None:
    """Scores that are small integers, and so exact on every device: equal ones must come lowest key first."""
    g = base(0)
    q = torch.randint(0, 2, (1, 2, 90, 32), generator=g).bfloat16()
    k = torch.randint(0, 2, (1, 2, 200, 32), generator=g).bfloat16()
    want = dense.extract(q, k, k, None, 0, None, None, 1 / 32, False, 8, 0, 0.0)
    got = run("attn_extract", *islands((q, k, k, None, 0, None, None, 1 / 32, False, 8, 0, 0.0)))
    assert (want["topk_p"].diff(dim=-1) == 0).float().mean() > 0.3, "the case has few ties"
    assert torch.equal(got[7].cpu().long(), want["topk_i"])


def check_colsum(run: Run, name: str, slack: float = 1.0) -> None:
    t, case = attention(name)
    options = {key: case[key] for key in ("scale", "window", "softcap")}
    p, _, lse = dense.pattern(t["q"], t["k"], starts=t["starts"], sinks=t["sinks"], **options)
    tail = (t["starts"], *options.values())
    for weights in (
        None,
        torch.rand(1, case["H"], case["T"], generator=base(1)),
        torch.eye(case["T"])[-1].expand(1, 1, -1),
    ):
        want = p.sum(2) if weights is None else (p * weights.double()[..., None]).sum(2)
        got = run("attn_colsum", *islands((t["q"], t["k"])), *islands((lse.float(), weights, *tail)))
        close("colsum", got, want, slack * case["slack"] * 2e-6)


def check_rows(run: Run, name: str, slack: float = 1.0) -> None:
    t, case = attention(name)
    options = {key: case[key] for key in ("scale", "window", "softcap")}
    p, _, lse = dense.pattern(t["q"], t["k"], starts=t["starts"], sinks=t["sinks"], **options)
    tail = (t["starts"], *options.values())
    g = base(2)
    tolerance = slack * case["slack"] * 2e-6
    rows = torch.randint(0, case["T"], (70,), generator=g)
    head = islands((t["q"], t["k"], lse.float()))
    close("rows", run("attn_rows", *head, *islands((rows, *tail))), p[:, :, rows], tolerance)
    qi, ki = torch.randint(0, case["T"], (131,), generator=g), torch.randint(0, case["S"], (131,), generator=g)
    qi[-1], ki[-1] = case["T"] - 1, case["S"] - 1  # one that is visible
    close("entries", run("attn_entries", *head, *islands((qi, ki, *tail))), p[:, :, qi, ki], tolerance)
    none = torch.zeros(0, dtype=torch.int64)
    assert run("attn_rows", *head, none, *tail).shape == (*p.shape[:2], 0, case["S"])
    assert run("attn_entries", *head, none, none, *tail).shape == (*p.shape[:2], 0)


def _one_position() -> list[tuple]:
    return [(r, r + 1, 0, 131) for r in range(70)]


def _ragged() -> list[tuple]:
    """Variants of several bases and lengths, fewer query rows than own keys, rows that see little or nothing."""
    rows, o = [], 0
    for n, base_range in ((5, (0, 37)), (40, (0, 131)), (3, (140, 290)), (7, (5, 5)), (1, (140, 141)), (30, (20, 280))):
        rows += [(o, o + i + 1, *base_range) for i in range(n)][-20:]
        o += n
    return [*rows, (0, 0, 3, 9), (0, 0, 0, 0), (86, 86, 0, 290)]


def _few() -> list[tuple]:
    """Few rows after many keys, so that these are split: of several bases, without own keys, without any."""
    return [(0, 1, 0, 1300), (0, 2, 0, 1300), (2, 5, 100, 700), (5, 5, 0, 1300), (5, 5, 9, 9), (5, 6, 1290, 1300)]


PREFIX = {
    "one_position": dict(dtype="bf16", H=4, Hkv=4, D=64, rows=_one_position),
    "one_position_gqa3": dict(dtype="bf16", H=6, Hkv=2, D=64, rows=_one_position),
    "one_position_cap": dict(dtype="fp32", H=2, Hkv=1, D=32, rows=_one_position, softcap=3.0, window=50),
    "ragged": dict(dtype="bf16", H=4, Hkv=4, D=128, rows=_ragged),
    "ragged_gqa3_d80": dict(dtype="bf16", H=6, Hkv=2, D=80, rows=_ragged),
    "ragged_fp32": dict(dtype="fp32", H=4, Hkv=1, D=64, rows=_ragged),
    "ragged_window": dict(dtype="bf16", H=2, Hkv=2, D=64, rows=_ragged, window=23),
    "ragged_cuts": dict(dtype="bf16", H=4, Hkv=2, D=64, rows=_ragged, cuts=True),
    "everything": dict(dtype="fp32", H=4, Hkv=1, D=64, rows=_ragged, cuts=True, window=90, softcap=4.0),
    "negative_scale": dict(dtype="bf16", H=2, Hkv=2, D=256, rows=_ragged, scale=-1.0),
    "sinks": dict(dtype="bf16", H=6, Hkv=2, D=64, rows=_ragged, window=90, sinks=(-40.0, 0.5, 2.0, 5.0, 60.0, 1.0)),
    "sinks_one_position": dict(dtype="fp32", H=2, Hkv=1, D=32, rows=_one_position, softcap=3.0, sinks=(0.5, 4.0)),
    "sinks_cuts": dict(dtype="bf16", H=4, Hkv=2, D=64, rows=_ragged, cuts=True, sinks=(-2.0, 0.0, 2.0, 4.0)),
    "split": dict(dtype="bf16", H=2, Hkv=2, D=64, rows=_few, keys=1300),
    "split_one_row": dict(dtype="bf16", H=4, Hkv=1, D=80, rows=lambda: [(0, 1, 3, 1290)], keys=1300),
    "split_sinks": dict(dtype="fp32", H=2, Hkv=1, D=32, rows=_few, keys=1300, softcap=4.0, sinks=(0.5, 4.0)),
    "split_window_cuts": dict(dtype="bf16", H=2, Hkv=1, D=64, rows=_few, keys=1300, window=900, cuts=True),
}
SPLIT = [name for name in PREFIX if name.startswith("split")]


def check_prefix(run: Run, name: str, slack: float = 1.0) -> None:
    case = {"cuts": False, "sinks": None, "window": 0, "softcap": 0.0, "scale": 1.0, "keys": 290, **PREFIX[name]}
    g = base(len(name))
    H, Hkv, D, dtype = (case[x] for x in ("H", "Hkv", "D", "dtype"))
    rows = torch.tensor(case["rows"](), dtype=torch.int32)
    R = len(rows)
    cuts = None
    if case["cuts"]:  # in no order, overlapping, whole rows and single heads, shared and own keys
        cuts = torch.tensor(
            [
                (60, -1, 0, 999),
                (3, -1, 5, 9),
                (3, -1, 37, 39),
                (20, 1, 135, 150),
                (17, 2, 0, 200),
                (17, 2, 30, 33),
                (1, 0, 0, 1),
                (R - 1, 1, 7, 280),
            ],
            dtype=torch.int32,
        )
        cuts = cuts[(cuts[:, 0] < R) & (cuts[:, 1] < H)]
    q = normal(g, R, H, D, dtype=dtype)
    k_shared, v_shared = (normal(g, case["keys"], Hkv, D, dtype=dtype) for _ in range(2))
    k_own, v_own = (normal(g, 86, Hkv, D, dtype=dtype) for _ in range(2))
    options = (case["scale"] * D**-0.5, case["window"], case["softcap"])
    sinks = None if case["sinks"] is None else torch.tensor(case["sinks"])
    args = (q, k_shared, v_shared, k_own, v_own, rows, *options, cuts, sinks)
    z, lse = dense.prefix(*args)
    got_z, got_lse = run("prefix_attn", *islands(args))
    close("z", got_z, z, slack * Z[dtype])
    close("lse", got_lse, lse, slack * STATISTICS["lse"])


ROWS = (  # dtypes of x, delta and weight; R, d
    ("fp32", None, "bf16", 3, 64),
    ("fp32", "bf16", "bf16", 5, 4096),
    ("fp32", "fp32", "fp32", 7, 131),
    ("bf16", "bf16", "bf16", 2, 100),
    ("fp32", "bf16", "fp16", 2, 17000),
    ("fp32", "fp32", "fp32", 1, 1),
)
ROPE = (("bf16", 5, 3, 64, 64), ("fp32", 3, 5, 80, 20), ("fp16", 2, 33, 128, 128))  # dtype, R, H, D, rotated
ROPE_KEYS = (("bf16", 5, 6, 64, 64), ("fp32", 3, 5, 80, 20), ("fp16", 2, 33, 128, 128), ("bf16", 3, 0, 64, 16))
SWIGLU = (("bf16", 5, 1537), ("fp32", 3, 64), ("fp16", 1, 1))
ROUND = {"bf16": 3e-3, "fp16": 4e-4, "fp32": 5e-7}


def check_norm(run: Run, x: str, delta: str | None, weight: str, R: int, d: int, slack: float = 1.0) -> None:
    g = base(d)
    a, b = normal(g, R, d, dtype=x), None if delta is None else normal(g, R, d, dtype=delta)
    w = normal(g, d, dtype=weight)
    added = a if b is None else (a.double() + b.double()).to(a.dtype)
    wide = added.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
    placed = islands((a,))[0]
    got = run("add_rms_norm", placed, *islands((b, w)), 1e-5)
    assert got.dtype == w.dtype
    close("norm", got, want, slack * ROUND[weight])
    assert torch.equal(placed, added), "x must hold the sum"


def check_rope(run: Run, dtype: str, R: int, H: int, D: int, rotated: int, slack: float = 1.0) -> None:
    g = base(D)
    x, cos, sin = normal(g, R, H, D, dtype=dtype), normal(g, R, rotated), normal(g, R, rotated)
    half = rotated // 2
    want = x.double()
    a, b = want[..., :half].clone(), want[..., half:rotated].clone()
    c, s = cos.double()[:, None], sin.double()[:, None]
    want[..., :half] = a * c[..., :half] - b * s[..., :half]
    want[..., half:rotated] = b * c[..., half:] + a * s[..., half:]
    placed, *angles = islands((x, cos, sin))
    assert run("rope", placed, *angles) is None
    close("rope", placed, want, slack * ROUND[dtype])
    assert torch.equal(placed[..., rotated:], x[..., rotated:]), "what is not rotated must stay as it is"


def check_rope_keys(run: Run, dtype: str, R: int, H: int, D: int, rotated: int, slack: float = 1.0) -> None:
    """Queries, keys and values as parts of one buffer, put where others lie in between; H = 0: no queries."""
    g, hkv = base(D), max(1, H // 2)
    qkv, (cos, sin) = normal(g, R, H + 2 * hkv, D, dtype=dtype), normal(g, 2, R, rotated)
    want, half = qkv.double(), rotated // 2
    turned = slice(0, H + hkv)
    a, b = want[:, turned, :half].clone(), want[:, turned, half:rotated].clone()
    c, s = cos.double()[:, None], sin.double()[:, None]
    want[:, turned, :half] = a * c[..., :half] - b * s[..., :half]
    want[:, turned, half:rotated] = b * c[..., half:] + a * s[..., half:]
    placed, cos, sin, k_out, v_out = islands((qkv, cos, sin, *torch.zeros(2, R, 2 * hkv, D, dtype=qkv.dtype)))
    q, k, v = placed.split((H, hkv, hkv), 1)
    assert run("rope_keys", q if H else None, k, v, cos, sin, k_out[:, ::2], v_out[:, ::2]) is None
    if H:
        close("queries", q, want[:, :H], slack * ROUND[dtype])
    close("keys", k_out[:, ::2], want[:, H : H + hkv], slack * ROUND[dtype])
    assert torch.equal(v_out[:, ::2], qkv[:, H + hkv :]) and torch.equal(placed[:, H:], qkv[:, H:])
    assert torch.equal(k_out[:, ::2, rotated:], qkv[:, H : H + hkv, rotated:]), "what is not rotated must be copied"
    assert not k_out[:, 1::2].any() and not v_out[:, 1::2].any(), "what lies in between must stay as it is"


def check_swiglu(run: Run, dtype: str, R: int, d: int, slack: float = 1.0) -> None:
    g = base(d)
    gate, up = 5 * normal(g, R, d, dtype=dtype), normal(g, R, d, dtype=dtype)
    got = run("swiglu", *islands((gate, up)))
    assert got.dtype == gate.dtype
    close("swiglu", got, gate.double().sigmoid() * gate.double() * up.double(), slack * ROUND[dtype])

"""Every launch of the wrappers, compiled ahead of time: it fits, spills nothing, uses tensor cores, copies asynchronously."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")
from pycotmech.kernels import configs, launch

from tests.kernels import ahead

DTYPES = {16: torch.bfloat16, 32: torch.float32}
KNOWN_SPILLS = {  # GPU, kernel, bits, head: outside of the table, small or off the main path (docs/kernels.md)
    ("sm_120", "extract_columns", 16, 128),
    ("sm_120", "colsum", 16, 128),
    *(("sm_80", "extract_columns", 16, D) for D in (40, 64)),
    ("sm_80", "colsum", 16, 64),
    ("sm_90", "prefix", 16, 40),
}
SINK_SPILLS = {  # the same with sinks: 64 segments beside 64 features, or float32 heads of 256, with every other limit besides
    *(("extract_columns", arch, 16, 128) for arch in ("sm_80", "sm_86")),
    ("prefix_cuts", "sm_80", 32, 256),
}
QUICK_KINDS = {
    "sm_80": ("extract_segments", "rows", "prefix"),
    "sm_90": ("extract_segments", "extract_topk", "colsum", "rows", "prefix"),
    "sm_100": ("rows", "prefix"),
}
"""By GPU: every kernel on one of them, and the quicker ones to compile on the others."""
QUICK = [configs.Key(kind, family, 16, 128) for family, kinds in QUICK_KINDS.items() for kind in kinds]


def name(key: configs.Key) -> str:
    return f"{key.kind}-{key.family}-{key.bits}-{key.D}"


def judge(
    arch: str,
    report: ahead.Report,
    *,
    mma: str = "",
    pipelined: bool = False,
    descriptors: bool = False,
    bits: int = 16,
    spills: bool = False,
) -> None:
    limit = configs.shared_limit(configs.family(arch), bits)
    assert report.shared <= limit, f"{report.kernel} asks for {report.shared} bytes of shared memory, {arch} has {limit}"
    assert report.spilled == 0 or spills, f"{report.kernel} spills {report.spilled} on {arch}"
    wanted = ahead.MMA[arch] in report.mma if mma == "full" else report.mma or not mma
    assert wanted, f"{report.kernel} on {arch}: {report.mma or 'no tensor cores'}"
    assert not pipelined or report.async_loads > 0, f"{report.kernel} copies nothing asynchronously on {arch}"
    assert not descriptors or report.opcodes["UTMALDG"] > 0, f"{report.kernel} does not use its descriptors on {arch}"


def check(arch: str, key: configs.Key, launches, excused: bool = False) -> None:
    dtype = DTYPES[key.bits]
    config = configs.pick(key.kind, dtype, key.D, descriptors=True, arch=arch)
    rows = config.block_n if key.kind == "colsum" else config.block_m  # of the left factor; colsum's are keys
    for call in launches:
        *before, last = ahead.compile_for(arch, call, dtype, key.D)
        for report in before:  # such as the pass that makes z, with the bins of the top keys
            judge(arch, report, mma="any", bits=key.bits, spills=(key.kind, key.bits, key.D) == ("extract_topk", 32, 256))
        judge(
            arch,
            last,
            mma="" if key.kind == "entries" else "full" if rows >= 64 else "any",
            # The loop over cuts inside the loop over keys leaves nothing to pipeline, and one stage means no pipeline.
            # Rows of D elements are known to be aligned if D is a multiple of 16; others are not copied asynchronously.
            pipelined=arch != "gfx942" and (config.tma or key.D % 16 == 0) and config.stages > 1 and key.kind != "prefix_cuts",
            descriptors=config.tma,
            bits=key.bits,
            spills=(arch != "gfx942" and (key.kind, key.bits, key.D) in configs.SPILLING)
            or (arch, key.kind, key.bits, key.D) in KNOWN_SPILLS
            or excused,
        )
        if key.kind == "extract_topk" and key.bits == 16 and arch in configs.BOUNDED:
            judge_lists(last)


def judge_lists(report: ahead.Report) -> None:
    """The loops that list top keys store scores from where the product leaves them: an exchange between threads, which
    Triton adds where their layouts differ, would take three times the instructions."""
    writing = [loop for loop in report.loops if loop["STG"]]
    assert writing, "no loop writes lists"
    for loop in writing:
        assert not any(loop[op] for op in ("STS", "LDS", "STSM", "LDSM", "SHFL")), f"{report.kernel} exchanges scores: {loop}"
    assert report.registers <= 128, f"{report.registers} registers: one program to a multiprocessor, not two"


def quick(key: configs.Key) -> tuple:
    """The launch that holds most; of the top keys, where that takes half a minute to compile, the plain one."""
    return ahead.LAUNCHES[key.kind][:1] if key.kind == "extract_topk" else ahead.LAUNCHES[key.kind][-1:]


@pytest.mark.parametrize("key", QUICK, ids=name)
def test_main_launches(key):
    """At the head size of the Llama models."""
    check(key.family, key, quick(key))


@pytest.mark.slow
@pytest.mark.parametrize("key", [k for k in configs.entries() if k not in QUICK or len(ahead.LAUNCHES[k.kind]) > 1], ids=name)
def test_every_entry_of_the_tables(key):
    """The launches that hold less too: they are programs of their own, and not always the better ones."""
    check(key.family, key, [call for call in ahead.LAUNCHES[key.kind] if key not in QUICK or call not in quick(key)])


@pytest.mark.parametrize("key", [k for k in QUICK if k.kind in ahead.SINK_LAUNCHES and k.family == "sm_90"], ids=name)
def test_sinks(key):
    """A sink is added after the loop over the keys: it costs neither spills nor the pipeline."""
    check(key.family, key, [ahead.SINK_LAUNCHES[key.kind]])


@pytest.mark.slow
@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("limits", [False, True])
@pytest.mark.parametrize("G", [0, 32])
def test_top_keys_beside_all_else(G, limits, D):
    """The pass that makes z, with segments, sinks and the bins of the top keys."""
    for report in ahead.compile_for("sm_90", ahead.top_keys_beside, torch.bfloat16, D, G, limits):
        judge("sm_90", report, mma="full", pipelined=True, descriptors=True)


@pytest.mark.slow
@pytest.mark.parametrize("key", [k for k in configs.entries() if k.kind in ahead.SINK_LAUNCHES], ids=name)
def test_sinks_at_every_entry(key):
    excused = (key.kind, key.family, key.bits, key.D) in SINK_SPILLS
    check(key.family, key, [ahead.SINK_LAUNCHES[key.kind]], excused)


@pytest.mark.parametrize("arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_86", "sm_100"))])
@pytest.mark.parametrize("kind", ["prefix_few", pytest.param("prefix_cuts", marks=pytest.mark.slow)])
def test_split_keys(arch, kind):
    """Two launches: the parts, with tensor cores and asynchronous loads, and what joins them."""
    parts, joined = ahead.compile_for(arch, ahead.SPLIT_LAUNCHES[kind], torch.bfloat16, 128)
    judge(arch, parts, mma="full", pipelined=kind == "prefix_few")
    judge(arch, joined)
    assert joined.kernel == "join_kernel" and joined.registers <= 128


@pytest.mark.slow
@pytest.mark.parametrize("kind", ahead.LAUNCHES)
def test_blackwell_desktop(kind):
    """sm_120 takes the entries of sm_86."""
    check("sm_120", configs.Key(kind, "sm_86", 16, 128), ahead.LAUNCHES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
@pytest.mark.parametrize("kind", ahead.LAUNCHES)
def test_float32_elsewhere(arch, kind):
    """The float32 tiles on the newer GPUs, where the table shows them for sm_80."""
    check(arch, configs.Key(kind, arch, 32, 128), ahead.LAUNCHES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("D", [32, 40, 64, 80, 96])
@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
def test_heads_that_are_padded(family, D):
    for kind in ("extract_segments", "extract_columns", "colsum", "prefix"):
        check(family, configs.Key(kind, family, 16, D), ahead.LAUNCHES[kind])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", ahead.ROW_LAUNCHES)
def test_row_kernels(arch, op):
    (report,) = ahead.compile_for(arch, ahead.ROW_LAUNCHES[op])
    judge(arch, report)


def test_a_spill_is_seen(monkeypatch):
    """128 x 128 tiles beside segment masses: too many registers on sm_90. The check must say so."""
    config = dataclasses.replace(configs.pick("extract_segments", torch.bfloat16, 128, arch="sm_80"), block_n=128, stages=2)
    monkeypatch.setattr(configs, "pick", lambda *args, **kwargs: config)
    (report,) = ahead.compile_for("sm_90", ahead.LAUNCHES["extract_segments"][-1], torch.bfloat16, 128)
    with pytest.raises(AssertionError, match="spills"):
        judge("sm_90", report)


def test_odd_strides_go_by_pointers():
    """Rows of 129 elements are no multiple of 16 bytes: no descriptor may be made of them."""
    q, k = torch.empty(1, 2, 100, 129).bfloat16()[..., :128], torch.empty(1, 2, 100, 128).bfloat16()
    assert launch.describable(k, k[:, :1]) and not launch.describable(q, k)
    with ahead.fake_gpu("sm_90") as compiled:
        ahead.rows_entries.attn_entries(q, k, torch.empty(1, 2, 100), *[ahead.indices()] * 2, None, 0.1, 0, 0.0)
        ahead.extract.attn_extract(q, k, k, None, 0, None, None, 0.1, False, 0, 0, 0.0)
    assert ahead.read(compiled[-1], "sm_90").opcodes["UTMALDG"] == 0

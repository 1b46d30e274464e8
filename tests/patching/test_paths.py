"""Path patching against two hooked float64 forward passes per path."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import pycotmech as pcm
from pycotmech.engine import senders as senders_module
from pycotmech.model import sizes
from tests.attention.test_scores import planted
from tests.patching.test_heads import SHAPES, T, pair
from tests.reference.paths import PathTruth
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, kl, logits_of, z_of

SENDERS = [(0, 1), (1, 3), (2, 2)]
RECEIVERS = [(1, 0), (2, 3), (3, 2), (0, 0)]  # the last has no sender below it
POSITIONS = [None, [-1], [30, 33], [28, -1]]
DIFFERENCE = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)


def difference(logits):
    return float(logits[7] - logits[11])


def runs(direction):
    clean, corrupted = pair()
    return (clean, corrupted), ((corrupted, clean) if direction == "denoise" else (clean, corrupted))


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_is_two_hooked_forwards_to_the_last_digits(shape, direction, freeze_mlps):
    """Every input, one key or value head's whole group or what one query head reads, at some positions and at all."""
    hf = double(tiny_llama(**SHAPES[shape]))
    prompts, (base, source) = runs(direction)
    truth, model = PathTruth(hf, base, source, freeze_mlps=freeze_mlps), pcm.Model(hf)
    options = dict(senders=SENDERS, direction=direction, freeze_mlps=freeze_mlps, **DIFFERENCE)
    for positions in POSITIONS:
        expected = {}
        for per_query_head in (True, False) if shape == "gqa" else (True,):
            expected[per_query_head] = e = truth.effects(
                SENDERS, RECEIVERS, "qkv", difference, positions=positions, per_query_head=per_query_head
            ).numpy()
            found = pcm.path_patch(
                model, *prompts, receivers=RECEIVERS, positions=positions, per_query_head=per_query_head, **options
            )
            assert (np.abs(e).max((1, 2)) > 1e-8).all()  # each input carries something
            raw = found.raw - (found.corrupted_metric if direction == "denoise" else found.clean_metric)
            assert np.abs(raw - e).max() < 1e-11 * (1 + np.abs(e).max()), (positions, per_query_head)
            assert (found.effect[:, :, 3] == 0).all() and (found.effect[:, 2, :2] == 0).all()  # none below
        if shape == "gqa":  # the two are different questions
            assert np.abs(expected[True] - expected[False]).max() > 1e-6
        if positions != [30, 33]:
            e = truth.effects(SENDERS, "logits", (), difference, positions=positions).numpy()
            found = pcm.path_patch(model, *prompts, positions=positions, **options)
            raw = found.raw - (found.corrupted_metric if direction == "denoise" else found.clean_metric)
            assert np.abs(e).min() > 1e-6 and np.abs(raw - e).max() < 1e-11


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_with_float64(shape):
    hf = tiny_llama(**SHAPES[shape])
    (clean, corrupted), _ = runs("denoise")
    truth, model = PathTruth(double(hf), corrupted, clean), pcm.Model(hf)
    reference = logits_of(truth.hf, clean)[-1]
    measure = {"logit_diff": difference, "kl": lambda logits: kl(reference, logits)}
    for metric, positions in (("logit_diff", None), ("kl", "read")):
        options = dict(metric=metric, answer=7, wrong=11, normalize=False, positions=positions, senders=SENDERS)
        where = [-1] if positions == "read" else positions
        expected = truth.effects(SENDERS, RECEIVERS, "qkv", measure[metric], positions=where).numpy()
        error = np.abs(pcm.path_patch(model, clean, corrupted, receivers=RECEIVERS, **options).effect - expected)
        assert error.max() <= 1e-4 * np.abs(expected).max() > 1e-6
        expected = truth.effects(SENDERS, "logits", "", measure[metric], positions=where).numpy()
        error = np.abs(pcm.path_patch(model, clean, corrupted, **options).effect - expected)
        assert error.max() <= 1e-4 * np.abs(expected).max() > 1e-6


def test_bfloat16_error_is_at_most_that_of_hooked_hugging_face():
    ours = theirs = signal = 0.0
    for seed in range(3):
        hf = tiny_llama(**SHAPES["gqa"], dtype=torch.bfloat16, seed=seed)
        clean, corrupted = pair(seed)
        options = dict(per_query_head=False)
        exact = PathTruth(double(hf), corrupted, clean).effects(SENDERS, RECEIVERS, "qkv", difference, **options).numpy()
        own = PathTruth(hf, corrupted, clean).effects(SENDERS, RECEIVERS, "qkv", difference, **options).numpy()
        model = pcm.Model(hf, check=False)
        found = pcm.path_patch(model, clean, corrupted, senders=SENDERS, receivers=RECEIVERS, **options, **DIFFERENCE)
        ours += float(((found.effect - exact) ** 2).sum())
        theirs += float(((own - exact) ** 2).sum())
        signal += float((exact**2).sum())
    assert ours <= theirs and ours < 0.1 * signal, (ours, theirs, signal)


@pytest.mark.parametrize("per_query_head", [True, False])
def test_all_pairs_are_one_pair_at_a_time(per_query_head):
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3)
    model, (clean, corrupted) = pcm.Model(double(hf)), pair()
    every = pcm.path_patch_all(model, clean, corrupted, per_query_head=per_query_head, **DIFFERENCE)
    heads = [(l, h) for l in range(3) for h in range(4)]
    assert every.shape == (3, 12, 12) and every.senders == every.receivers == tuple(heads) and every.inputs == ("q", "k", "v")
    paths = 2 * 16 + 16  # from layer 0 to 1 and 2, from 1 to 2
    assert every.plan.variants == 12 + (3 * paths if per_query_head else paths + 2 * paths // 2)
    for s, r, i in [((0, 3), (1, 1), "q"), ((1, 0), (2, 3), "k"), ((0, 2), (2, 0), "v"), ((0, 0), (1, 2), "k")]:
        one = pcm.path_patch(
            model, clean, corrupted, senders=[s], receivers=[r], receiver_input=i, positions=[-1],
            per_query_head=per_query_head, **DIFFERENCE,
        )  # fmt: skip
        assert one.shape == (1, 1, 1) and one.path(s, r) != 0
        assert one.path(s, r) == pytest.approx(every.path(s, r, i), rel=1e-6)
    below = np.array([[a < b for b, _ in heads] for a, _ in heads])
    assert (every.effect[:, ~below] == 0).all() and (every.effect[:, below] != 0).all()
    groups = every.effect[1:].reshape(2, 12, 6, 2)
    assert (groups[..., 0] == groups[..., 1]).all() != per_query_head  # a group's heads share its key and its value


def test_direct_effect_is_dz_through_the_output_projection_and_the_final_norm():
    hf = double(tiny_llama(**SHAPES["gqa"]))
    (clean, corrupted), _ = runs("denoise")
    z_clean, z_corrupted = z_of(hf, clean), z_of(hf, corrupted)
    final: list[torch.Tensor] = []
    handle = hf.model.norm.register_forward_pre_hook(lambda _module, args: final.append(args[0][0, -1]))
    logits_of(hf, corrupted)
    handle.remove()
    found = pcm.path_patch(pcm.Model(hf), clean, corrupted, freeze_mlps=True, **DIFFERENCE)
    assert found.shape == (24,) and found.axes == ("sender",) and found.from_senders().shape == (4, 6)
    for l, h in [(0, 0), (1, 5), (3, 2)]:
        columns = slice(h * 16, (h + 1) * 16)
        dz = (z_clean[l] - z_corrupted[l])[-1, h]
        moved = final[0] + hf.model.layers[l].self_attn.o_proj.weight[:, columns] @ dz
        assert difference(hf.lm_head(hf.model.norm(moved))) == pytest.approx(float(found.raw[l * 6 + h]), rel=1e-10)


def test_the_direct_paths_of_all_heads_add_up_with_frozen_mlps(monkeypatch):
    """In the residual stream what senders add is the difference of the two runs' attention outputs."""
    hf = double(tiny_llama(**SHAPES["gqa"]))
    (clean, corrupted), _ = runs("denoise")
    model, seen = pcm.Model(hf), []
    original = senders_module.run_senders
    monkeypatch.setattr(
        "pycotmech.patching.path_sweep.run_senders", lambda *a, **k: seen.append((a[2], original(*a, **k))) or seen[-1][1]
    )
    pcm.path_patch(model, clean, corrupted, freeze_mlps=True, **DIFFERENCE)
    acts = [model.run(t, capture=("attn_out", "resid_post")) for t in (clean, corrupted)]
    asked, climbed = seen[0]
    added = climbed.final - acts[1]["resid_post"][-1, -1]
    assert len(asked) == 24 + 12  # the last of each layer's are controls, which move nothing to speak of
    expected = (acts[0]["attn_out"] - acts[1]["attn_out"])[:, -1].sum(0)
    assert expected.norm() > 0.1 and torch.allclose(added.sum(0), expected, atol=1e-12)


def test_the_planted_circuit_is_found():
    """A previous-token head tells the keys of an induction head which token came before; nothing else is said."""
    hf = planted()
    second, n, D = hf.model.layers[1].self_attn, 16, 64
    second.v_proj.weight[D : D + n, :n] = torch.eye(n)  # 1.1 reads the token it attends to
    second.o_proj.weight[n:, D : D + n] = 4 * torch.eye(n)
    hf.lm_head.weight[:, n:] = torch.eye(n)
    clean = torch.tensor([3, 8, 5, 9, 1, 2, 12, 6, 14, 5])  # after 5 came 9
    corrupted = clean.clone()
    corrupted[2] = 7
    options = dict(metric="logit_diff", answer=9, wrong=8)
    found = pcm.path_patch(pcm.Model(hf), clean, corrupted, receivers="all", **options)
    assert found.path((0, 0), (1, 1), "k") > 0.95
    others = np.abs(found.effect).copy()
    others[found.inputs.index("k"), 0, 3] = 0
    assert others.max() < 0.05
    assert found.top(1) == [(((0, 0), "k", (1, 1)), found.path((0, 0), (1, 1), "k"))]
    assert np.abs(pcm.path_patch(pcm.Model(hf), clean, corrupted, senders=[(0, 0), (0, 1)], **options).effect).max() < 0.05
    last = pcm.path_patch_all(pcm.Model(hf), clean, corrupted, **options)  # the key is not at the last position
    assert np.abs(last.effect).max() < 0.05


def test_a_list_of_pairs_is_the_same_as_one_at_a_time():
    model = pcm.Model(double(tiny_llama(**SHAPES["gqa"])))
    shared = torch.randint(61, (12,), generator=torch.Generator().manual_seed(9))
    pairs = [pair(seed, length=14 + 3 * seed, first=4 + seed, also=()) for seed in range(3)]
    pairs = [tuple(torch.cat((shared, t)) for t in both) for both in pairs]
    prompts = [c for c, _ in pairs], [d for _, d in pairs]
    for options in (dict(receivers="all"), dict(receivers="all", positions=[-2, -1], per_query_head=False), dict()):
        together = pcm.path_patch(model, *prompts, **options)
        for i, (clean, corrupted) in enumerate(pairs):
            alone = pcm.path_patch(model, clean, corrupted, **options)
            assert together.raw[i].shape == alone.raw.shape
            assert np.abs(together.raw[i] - alone.raw).max() < 1e-11
        mean, base = together.raw.mean(0), together.corrupted_metric.mean()
        assert np.abs(together.values - (mean - base) / (0 - base)).max() < 1e-6  # the ratio of means


@pytest.mark.parametrize("receivers", [RECEIVERS, "logits"])
def test_independent_of_chunks_and_blocks_and_progress_ends_at_its_total(receivers, monkeypatch):
    model = pcm.Model(tiny_llama(**SHAPES["gqa"]))
    prompts = [pair(seed)[0] for seed in range(2)], [pair(seed)[1] for seed in range(2)]
    options = dict(receivers=receivers, positions=[-3, -1], freeze_mlps=receivers == "logits", **DIFFERENCE)
    whole = pcm.path_patch(model, *prompts, **options)
    tolerance = 2e-5 * np.abs(whole.effect).max()
    assert whole.plan.chunks == 1
    one_at_a_time = 5e-4
    pieces = 0.9 * whole.plan.bytes_in_flight / 2**30  # of paths, not of senders or examples
    for memory_gb in (one_at_a_time, pieces):
        seen: list[tuple[int, int]] = []
        few = dict(senders=SENDERS) if memory_gb == one_at_a_time else {}
        small = pcm.path_patch(
            model, *prompts, memory_gb=memory_gb, progress=lambda *now, seen=seen: seen.append(now), **few, **options
        )
        which = [whole.senders.index(s) for s in small.senders]
        assert small.plan.chunks > 1 or (receivers == "logits" and not few)
        assert np.abs(small.raw - np.take(whole.raw, which, -1 if receivers == "logits" else 2)).max() < tolerance
        assert seen[-1][0] == seen[-1][1] > 0 and seen == sorted(seen)
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, row_block=5))
    again = pcm.path_patch(model, *prompts, **options)
    assert np.abs(again.raw - whole.raw).max() < tolerance
    assert np.array_equal(pcm.path_patch(model, *prompts, **options).raw, again.raw)  # one plan, one result


def test_what_is_attached_to_the_output_projection_is_honoured():
    """The join is not the plain product then, for one head and for a group."""
    hf = tiny_llama(**SHAPES["gqa"])
    wide = double(hf)
    for layer in wide.model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda _module, _args, out: torch.tanh(out))
    (clean, corrupted), _ = runs("denoise")
    expected = PathTruth(wide, corrupted, clean).effects(SENDERS, RECEIVERS, "qkv", difference, per_query_head=False).numpy()
    found = pcm.path_patch(
        pcm.Model(wide), clean, corrupted, senders=SENDERS, receivers=RECEIVERS, per_query_head=False, **DIFFERENCE
    )
    assert np.abs(expected).max() > 1e-3 and np.abs(found.raw - found.corrupted_metric - expected).max() < 1e-11


def test_the_scale_and_the_labels_of_a_result(tmp_path):
    model, (clean, corrupted) = pcm.Model(tiny_llama(**SHAPES["gqa"])), pair()
    plain = pcm.path_patch(model, clean, corrupted, senders=SENDERS, receivers=RECEIVERS, **DIFFERENCE)
    for direction in ("denoise", "noise"):
        found = pcm.path_patch(
            model,
            clean,
            corrupted,
            senders=SENDERS,
            receivers=RECEIVERS,
            direction=direction,
            **DIFFERENCE | {"normalize": True},
        )
        span = found.clean_metric - found.corrupted_metric
        assert np.abs(found.values - (found.raw - found.corrupted_metric) / span).max() < 1e-5
        expected = found.values if direction == "denoise" else 1 - found.values
        assert np.abs(found.effect - expected).max() < 1e-4
        assert found.values[:, 2, 0] == pytest.approx(float(direction == "noise"), abs=1e-6)
    assert plain.axes == ("input", "sender", "receiver") and plain[0, 1, 2] == plain.values[0, 1, 2]
    assert 0 < plain.noise_floor < 1e-3
    frame = plain.to_dataframe()
    assert len(frame) == 3 * (3 + 2 + 1)  # sender (0, 1) lies below three receivers, (1, 3) below two, (2, 2) below one
    row = frame.query("input == 'k' and sender_layer == 1 and receiver_layer == 3").iloc[0]
    assert row["effect"] == np.float32(plain.path((1, 3), (3, 2), "k")) and row["receiver_head"] == 2
    grid = plain.from_senders((3, 2), "k")
    assert grid.shape == (4, 6) and grid[1, 3] == plain.path((1, 3), (3, 2), "k") and np.isnan(grid).sum() == 24 - 3
    grid = plain.to_receivers((1, 3), "k")
    assert grid[3, 2] == plain.path((1, 3), (3, 2), "k") and np.isnan(grid).sum() == 24 - 4
    assert plain.path((0, 1), (2, 3), "q", of="values") == plain[0, 0, 1]
    best, value = plain.top(1)[0]
    assert abs(value) == np.abs(plain.effect).max() and plain.path(best[0], best[2], best[1]) == value
    assert "-> " + best[1] + f" of L{best[2][0]}H{best[2][1]}" in str(plain) and len(plain.top(100)) == 18
    for kind in (dict(receiver=(3, 2), input="k"), dict(sender=(1, 3), input="v"), dict()):
        plain.plot(path=str(tmp_path / "map.png"), **kind)
        assert (tmp_path / "map.png").stat().st_size > 1000
        (tmp_path / "map.png").unlink()
    with pytest.raises(KeyError, match=r"sender: \(0, 0\) is not in this sweep; it has \(0, 1\), \(1, 3\), \(2, 2\)"):
        plain.path((0, 0), (3, 2), "q")
    with pytest.raises(KeyError, match="input: None is not in this sweep; it has q, k, v"):
        plain.path((0, 1), (3, 2))
    with pytest.raises(KeyError, match="input: None is not in this sweep; it has q, k, v"):
        plain.plot(sender=(1, 3))
    with pytest.raises(ValueError, match="by: got 'raw'; expected 'effect' or 'values'"):
        plain.top(by="raw")
    direct = pcm.path_patch(model, clean, corrupted, **DIFFERENCE)
    assert direct.path((1, 3)) == direct.from_senders()[1, 3] and "-> logits" in str(direct)
    assert list(direct.to_dataframe().columns) == ["sender_layer", "sender_head", "value", "effect", "above_floor"]
    direct.plot()
    with pytest.raises(KeyError, match="the logits are the only receiver"):
        direct.path((1, 3), (2, 0))


def test_arguments_are_checked_before_anything_runs(monkeypatch):
    model = pcm.Model(tiny_llama(**SHAPES["gqa"]))
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    clean, corrupted = pair()
    bad = [
        (dict(direction="up"), "direction: got 'up'"),
        (dict(senders=[]), "senders: the list is empty"),
        (dict(senders=[(4, 0)]), r"senders: \(4, 0\) is out of range"),
        (dict(receivers=[(0, 6)]), r"receivers: \(0, 6\) is out of range"),
        (dict(receivers="output"), "receivers: got 'output'; expected 'logits', 'all' or a list"),
        (dict(receivers=None), "receivers: got None"),
        (dict(receiver_input="q"), "receiver_input: got 'q' for receivers 'logits'"),
        (dict(receivers="all", receiver_input="z"), "receiver_input: got 'z'; expected 'q', 'k', 'v'"),
        (dict(receivers="all", receiver_input=("q", "q")), "receiver_input: .* each once"),
        (dict(receivers="all", receiver_input=()), r"receiver_input: got \(\)"),
        (dict(receivers=[(1, 0)], senders=[(1, 1), (2, 0)]), "expected a receiver in a layer above a sender"),
        (dict(receivers=[(3, 0)], receiver_input="q", positions=[30]), r"positions: senders replaced at \[30\] reach nothing"),
        (dict(positions=[30]), r"positions: senders replaced at \[30\] reach nothing .* by way of the logits"),
        (dict(positions=[3]), "positions: .* reach nothing that is read"),
        (dict(positions="last"), "positions: got 'last'; expected 'read'"),
        (dict(metric="accuracy"), "metric: got 'accuracy'"),
        (dict(memory_gb=-1), "memory_gb: got -1"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            pcm.path_patch(model, clean, corrupted, **arguments)
    with pytest.raises(ValueError, match="senders: all heads are senders and receivers here"):
        pcm.path_patch_all(model, clean, corrupted, senders=[(0, 0)])
    for arguments, message in [
        (dict(n_tokens=0), "n_tokens: got 0"), (dict(n_tokens=9, n_differ=10), "n_differ: got 10"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pcm.plan_paths(model, **arguments)
    with pytest.raises(TypeError, match="model: got str; expected"):
        pcm.plan_paths("llama", 10)


def test_a_plan_made_ahead_is_the_plan_that_is_carried_out():
    hf = tiny_llama(**SHAPES["gqa"])
    (clean, corrupted), options = pair(), dict(receivers="all", positions=[-5, -1], memory_gb=1.0)
    found = pcm.path_patch(pcm.Model(hf), clean, corrupted, metric="logit_diff", answer=7, wrong=11, **options)
    first = int((clean != corrupted).nonzero()[0])
    for model in (pcm.Model(hf), hf.config):
        assert pcm.plan_paths(model, T, n_differ=T - first, metric="logit_diff", **options) == found.plan
    whole = pcm.plan_paths(hf.config, T, n_differ=T - first, metric="kl", **options)
    assert whole.flop - found.plan.flop == found.plan.variants * 2 * 48 * (61 - 2)


def test_the_plan_of_llama_2_7b_needs_no_weights():
    config = transformers.LlamaConfig()  # its defaults are those of Llama-2 7B
    config.dtype = torch.bfloat16
    plan = pcm.plan_paths(config, 1024, metric="logit_diff", memory_gb=16)
    assert plan.variants == 3 * 1024 * 1024 * 31 // 64 + 12
    assert 6e15 < plan.flop < 8e15 and plan.bytes_in_flight < 16 * 2**30 and "TFLOP" in str(plan)

"""Long analyses that are interrupted: what was finished is not computed again, and the result is the same."""

from __future__ import annotations

import numpy as np
import pytest

import pycotmech as pcm
from pycotmech.traces import Parts, cut_runs
from pycotmech.traces.analyses import chain_use, receiver_heads, suppress
from tests.reference.close import assert_allclose
from tests.traces.cases import random_trace, tiny


@pytest.fixture(scope="module")
def model():
    return tiny(n_layers=2)


@pytest.fixture(scope="module")
def traces(model):
    return [random_trace(model, seed=seed) for seed in range(3)]


class Stopped(BaseException):
    """As KeyboardInterrupt, which would stop the tests."""


def interrupted(monkeypatch, module, name, after):
    """Lets a function run so many times, and then stops; returns the list of its calls."""
    calls, whole = [], getattr(module, name)

    def counted(*args, **options):
        if len(calls) == after:
            raise Stopped
        calls.append(name)
        return whole(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


CASES = {
    "suppress": (cut_runs, "_climb", lambda m, t, p: pcm.traces.suppress(m, t[0], parts=p)),
    "receiver_heads": (receiver_heads, "watch_sentences", lambda m, t, p: pcm.traces.receiver_heads(m, t, draws=20, parts=p)),
    "chain_use": (chain_use, "head_influence", lambda m, t, p: pcm.traces.is_chain_used(m, t, parts=p)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_analysis_computes_only_what_is_missing(model, traces, tmp_path, monkeypatch, name):
    module, function, run = CASES[name]
    if name == "suppress":
        monkeypatch.setattr(cut_runs, "BATCH_ROWS", 1)  # so many rows as the longest cut has
    place = tmp_path / "parts"
    with monkeypatch.context() as patched:
        counted = interrupted(patched, module, function, 99)
        whole = run(model, traces, None)
        n = len(counted)
    assert n > 2
    with monkeypatch.context() as patched:
        calls = interrupted(patched, module, function, 2)
        with pytest.raises(Stopped), Parts(place, "a") as parts:
            run(model, traces, parts)
    assert len(calls) == 2 and place.is_dir()
    with monkeypatch.context() as patched:
        calls = interrupted(patched, module, function, 99)
        with Parts(place, "a") as parts:
            again = run(model, traces, parts)
    assert len(calls) == n - 2 and not place.exists()
    for variable in whole.data.data_vars:
        assert_allclose(again.data[variable].values, whole.data[variable].values, rtol=1e-6, atol=1e-9, err_msg=variable)


def test_parts_of_other_settings_weights_or_bytes_are_not_used(model, traces, tmp_path, monkeypatch):
    place = tmp_path / "parts"

    def computed(identity="a", **options):
        with monkeypatch.context() as patched:
            calls = interrupted(patched, cut_runs, "_climb", 99)
            parts = Parts(place, identity)
            pcm.traces.suppress(model, traces[0], parts=parts, **options)
            parts.__exit__(Stopped)
        return len(calls)

    assert [computed(), computed(), computed(seed=1), computed(seed=1, identity="b"), computed(identity="b")] == [1, 0, 1, 1, 1]
    assert computed(identity="b") == 0
    chunk = next(p for p in (place / "kl").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    assert computed(identity="b") == 1


def test_parts_are_written_after_a_pause_and_at_an_interruption(tmp_path, monkeypatch):
    from pycotmech.traces import parts as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    parts = Parts(tmp_path / "parts")
    parts.keep("k", {"x": np.arange(3)})
    assert not parts.path.exists() and parts.read("k") == {}
    now[0] = module.PAUSE
    parts.keep("k", {"x": np.arange(4), "done": np.array(2)})
    assert parts.read("k")["x"].tolist() == [0, 1, 2, 3] and parts.read("k")["done"] == 2 and parts.read("l") == {}


def test_a_key_tells_traces_apart(model, traces):
    keys = [suppress.key_of("suppress", model, [trace]) for trace in (*traces, random_trace(model, answer=False), traces[0])]
    assert len(set(keys)) == 4 and keys[0] == keys[-1]

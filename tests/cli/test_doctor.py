"""`pycotmech doctor`: what works, what does not, what could be installed."""

from __future__ import annotations

import json

import pytest

from pycotmech import ops
from pycotmech.cli import checks, machine
from pycotmech.cli.doctor import text


def test_a_healthy_machine(shell, monkeypatch):
    monkeypatch.setattr(machine, "_WIDTH", 256)
    monkeypatch.setattr(machine, "_BYTES", 1 << 20)
    code, out, err = shell("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["works"], [check for check in found["checks"] if check["works"] is False] or err
    names = {check["name"] for check in found["checks"]}
    assert {"torch", "matplotlib", "C++ kernels", "processor", "sweep", "results store", "free memory", "model cache"} <= names
    speed = found["speed"]
    assert speed["products"]["float32"] > 1e8 and speed["bandwidth"] > 1e7 and speed["share"] > 0 and speed["heads"] == 54
    shown = text([checks.Check(**check) for check in found["checks"]], machine.Speed(**speed))
    assert "Everything that should work works." in shown and "matrix products: " in shown and "FAULT" not in shown


def test_what_should_work_and_does_not_is_a_fault(shell, monkeypatch):
    speed = machine.Speed("CPU", 1, {"float32": 2e11}, 1e10, 1e11, 0.5, 0.2, 54)
    monkeypatch.setattr(machine, "measured", lambda: speed)
    monkeypatch.setattr(checks, "exactness", broken)
    monkeypatch.setattr(ops, "cpp_missing", "the C++ kernels in _C.abi3.so could not be loaded (no symbol)")
    code, out, err = shell("doctor")
    assert code == 1 and "2 faults" in out and "FAULT  C++ kernels" in out
    assert "pycotmech: broken: RuntimeError: the model\\x1b is gone" in err and "pip install --force-reinstall" in err


def broken():
    raise RuntimeError("the model\x1b is gone")
    yield


def test_extras_that_are_missing_are_no_fault(monkeypatch):
    monkeypatch.setattr(checks, "is_installed", lambda package: package != "sklearn")
    rows = {name: row for name, *row in checks.optional_packages()}
    assert rows["scikit-learn"] == [None, "not installed; probes need it", "pip install 'pycotmech[probes]'"]
    assert rows["matplotlib"][0] is True


def test_a_requirement_that_is_not_met_is_a_fault(monkeypatch):
    wanted = ["torch>=2.10", "numpy>=99", "nothing-of-this-name", 'ray>=99 ; extra == "ray"']
    monkeypatch.setattr(checks.metadata, "requires", lambda name: wanted)
    rows = {name: row for name, *row in checks.required_packages()}
    assert rows["torch"][0] and set(rows) == {"python", "torch", "numpy", "nothing-of-this-name"}
    assert not rows["numpy"][0] and rows["numpy"][2] == "pip install 'numpy>=99'"
    assert rows["nothing-of-this-name"][:2] == [False, "not installed"]


@pytest.mark.parametrize("installed", [True, False])
def test_kernels_that_are_not_there_are_a_fault_only_if_they_were_built(monkeypatch, installed, tmp_path):
    monkeypatch.setattr(ops, "cpp_missing", "the C++ kernels are not built")
    monkeypatch.setattr(ops, "__file__", str(tmp_path / "pycotmech" / "ops" / "__init__.py"))
    (tmp_path / "pycotmech").mkdir()
    if installed:
        (tmp_path / "pycotmech" / "_C.abi3.so").write_bytes(b"")
    rows = {name: row for name, *row in checks.compiled()}
    assert rows["C++ kernels"][0] is (False if installed else None)

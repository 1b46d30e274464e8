"""docs/kernels.md shows the tile tables as they are, and nothing in it is too large, or spilled unless the tables say so."""

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
from pycotmech.kernels import configs

from tests.kernels import kernel_table


def test_every_entry_is_in_the_document():
    rows = kernel_table.rows()
    names = [kernel_table.label(key) for key in configs.entries()]
    stale = [name for name, row in zip(names, rows) if not row.startswith(name)]
    again = "run `python -m tests.kernels.kernel_table`"
    assert len(rows) == len(names), f"docs/kernels.md has {len(rows)} rows, the tables {len(names)} entries: {again}"
    assert not stale, f"docs/kernels.md does not show {stale[:3]}: {again}"


def test_the_document_names_the_version():
    """Registers differ by version."""
    version = kernel_table.version()
    assert version is not None and f"TRITON := {version}" in (kernel_table.DOCUMENT.parents[1] / "Makefile").read_text()


def test_figures_fit():
    for row in kernel_table.rows():
        _, kernel, family, bits, head, *_, spilled, shared, mma, _ = (cell.strip() for cell in row.split("|"))
        excused = family != "gfx942" and (kernel, int(bits), int(head)) in configs.SPILLING
        assert int(spilled) == 0 or excused, row
        assert int(shared) <= configs.shared_limit(family, int(bits)), row
        assert kernel == "entries" or int(mma.split()[0]) > 0, row


def test_families():
    assert [configs.family(a) for a in ("sm_80", "sm_89", "sm_120", "sm_90", "sm_103", "gfx942", "gfx950")] == [
        "sm_80", "sm_86", "sm_86", "sm_90", "sm_100", "gfx942", "gfx942",
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match=r"8\.0 or later"):
        configs.family("sm_75")
    with pytest.raises(ValueError, match="1 to 256"):
        configs.padded(257)

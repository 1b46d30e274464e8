"""Writes the tables in docs/kernels.md: `python -m tests.kernels.kernel_table [word ...]`.

Compiles what the table lacks ahead of time, a few seconds an entry, no GPU needed. With words, the entries whose row has
them all (`sm_90 16`) are compiled again; with the word `all`, every entry. Registers differ by the version of Triton, so
another version than the document names compiles every entry. The second table, of the CUDA kernel, is written
anew each time where nvcc is found.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
import triton
from pycotmech.kernels import configs

from tests.reference import generated

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
CUDA_HEAD = (
    "| kernel | GPU | dtype | registers | stack | spill stores | spill loads | shared (head 256) |\n"
    "|---|---|---|---|---|---|---|---|\n"
)
DTYPES = {16: torch.bfloat16, 32: torch.float32}
HEAD = (
    "| kernel | GPU | bits | head | tile | warps | stages | loads | registers | spilled | shared | tensor cores |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def label(key: configs.Key) -> str:
    """The columns that come from the tile tables alone."""
    c = configs.pick(key.kind, DTYPES[key.bits], key.D, descriptors=True, arch=key.family)
    tile = f"{c.block_m}" if key.kind == "entries" else f"{c.block_m} x {c.block_n}"
    loads = "descriptors" if c.tma else "pointers"
    return f"| {key.kind} | {key.family} | {key.bits} | {key.D} | {tile} | {c.warps} | {c.stages} | {loads} |"


def rows() -> list[str]:
    return re.findall(r"^\|.*\|$", generated.shown(DOCUMENT), re.M)[2:]


def version() -> str | None:
    """The version of Triton that the document names."""
    named = re.search(r"^Compiled with Triton (\S+)\.$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    return named and named[1]


def compiled(key: configs.Key) -> str:
    from tests.kernels import ahead

    *_, report = ahead.compile_for(key.family, ahead.LAUNCHES[key.kind][-1], DTYPES[key.bits], key.D)
    mma = ", ".join(f"{n} {op}" for op, n in report.mma.items()) or "-"
    return f"{label(key)} {report.registers} | {report.spilled} | {report.shared} | {mma} |"


def write(known: dict[str, str]) -> None:
    said = f"Compiled with Triton {triton.__version__}.\n\n"
    table = HEAD + "".join(f"{known[name]}\n" for name in map(label, configs.entries()) if name in known)
    generated.write(DOCUMENT, said + table)


def cuda_rows() -> list[str]:
    from tests.kernels import nvcc_report

    return [
        f"| {r.kernel} | {r.arch} | {r.dtype} | {r.registers} | {r.stack} | {r.spill_stores} | {r.spill_loads} | {r.shared} |"
        for r in nvcc_report.rows()
    ]


def documented_cuda_rows() -> list[str]:
    return re.findall(r"^\|.*\|$", generated.shown(DOCUMENT, "CUDA table"), re.M)[2:]


def write_cuda() -> None:
    generated.write(DOCUMENT, CUDA_HEAD + "".join(f"{row}\n" for row in cuda_rows()), "CUDA table")


def main(words: list[str]) -> None:
    if version() not in (None, triton.__version__):
        words = ["all"]
    known = {name: row for name in map(label, configs.entries()) for row in rows() if row.startswith(name)}
    for key in configs.entries():
        name = label(key)
        if name not in known or words == ["all"] or (words and all(f" {w} " in name for w in words)):
            known[name] = compiled(key)
            print(known[name], flush=True)
            write(known)
    write(known)
    from tests.kernels import nvcc_report

    if nvcc_report.find_nvcc() is not None:
        write_cuda()


if __name__ == "__main__":
    main(sys.argv[1:])

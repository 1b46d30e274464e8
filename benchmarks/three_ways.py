"""The same question in three libraries: lines, seconds and memory, from one run.

    make peers                                             # .venv-peers, with TransformerLens, nnsight and pyvene
    .venv-peers/bin/python -m benchmarks.three_ways --page # about 4 minutes on two idle cores

Which of the 270 heads of SmolLM2-135M restore the answer of an inductive step, by the logit difference? The snippets are the
blocks of docs/migration.md, "Which heads restore the answer?", run as they stand. Each has a process of its own, and the same
weights, prompts, dtype and threads, over all heads; nothing is scaled. The clock runs from the loaded Hugging Face model to the
last number, the library's own preparations included, its import not. Memory is the peak of the process, and beside it what the
process had before (Python, PyTorch, the library, the weights).

A row has figures only if its numbers are those of pycotmech within a thousandth of the largest effect.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.suite import processor
from tests.reference import generated

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORD = ROOT / "docs" / "migration.md", ROOT / "docs" / "three_ways.json"
SECTION = "## Which heads restore the answer?"
RESULTS = {"TransformerLens": "by_lens", "nnsight": "by_nnsight", "pyvene": "by_pyvene", "pycotmech": "sweep.raw"}
"""Library -> what its snippet calls the metric of each patched run, [L, H]."""
PACKAGES = {"TransformerLens": "transformer-lens", "nnsight": "nnsight", "pyvene": "pyvene"}
DEFAULT = ("pycotmech", "nnsight", "TransformerLens")
TOLERANCE = 1e-3


def snippets() -> dict[str, str]:
    """Library -> its block of the page."""
    section = PAGE.read_text("utf-8").split(SECTION)[1].split("\n## ")[0]
    found = re.findall(r"\*\*(\w+)\*\*\n\n```python[^\n]*\n(.*?)^```", section, re.M | re.S)
    return {name: textwrap.dedent(text) for name, text in found}


def lines(snippet: str) -> int:
    """Lines of code, without blank lines, imports and comments."""
    kept = [line.strip() for line in snippet.splitlines()]
    return sum(bool(line) and not re.match(r"(import|from) |#|\)", line) for line in kept)


def situation(model_name: str, shots: int, folder: str) -> dict[str, Any]:
    """What the page's first block gives: the names that the snippets begin with."""
    import pycotmech as pcm
    import pycotmech.patching  # which pcm.patch_heads would load: no library's import is part of its time

    model = pcm.Model.from_pretrained(model_name, dtype="float32")
    example = pcm.cot.make_examples(1, tokenizer=model.tokenizer, bos=model.prepend_bos, shots=shots)[0]
    step, cfg = example.steps[5], model.cfg
    model.hf.config.save_pretrained(folder)  # TransformerLens reads the configuration by name
    model.tokenizer.save_pretrained(folder)

    def logit_difference(logits):
        return logits[0, -1, step.answer] - logits[0, -1, step.wrong]

    return {
        "torch": torch, "pcm": pcm, "model": model, "hf": model.hf, "tokenizer": model.tokenizer, "path": folder, "step": step,
        "clean": step.clean, "corrupted": step.corrupted, "answer": step.answer, "wrong": step.wrong,
        "L": cfg.n_layers, "H": cfg.n_heads, "D": cfg.d_head, "logit_difference": logit_difference,
    }  # fmt: skip


def version(library: str) -> str:
    import pycotmech as pcm

    return importlib.metadata.version(PACKAGES[library]) if library in PACKAGES else pcm.__version__


def execute(text: str, path: Path, names: dict[str, Any]) -> None:
    """Runs a snippet from a file, where nnsight reads its source."""
    path.write_text(text, "utf-8")
    exec(compile(text, str(path), "exec"), names)


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def answer(library: str, model_name: str, shots: int) -> dict[str, Any]:
    """Runs a snippet in this process."""
    snippet = snippets()[library]
    imports = "\n".join(line for line in snippet.splitlines() if re.match(r"(import|from) ", line))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        names = situation(model_name, shots, folder)
        exec(imports, names)
        before, start = peak(), time.perf_counter()
        execute(snippet, Path(folder) / "snippet.py", names)
        seconds, after = time.perf_counter() - start, peak()
        values = np.asarray(eval(RESULTS[library], names), dtype=np.float64)
    return {
        "library": library, "version": version(library), "lines": lines(snippet),
        "seconds": seconds, "peak": after, "before": before, "tokens": len(names["clean"]), "values": values.tolist(),
    }  # fmt: skip


def run(library: str, model_name: str, shots: int, threads: int) -> dict[str, Any]:
    """The same in a fresh process; {"library", "why"} if it failed there."""
    asked = ["--only", library, "--model", model_name, "--shots", str(shots), "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.three_ways", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"library": library, "why": (done.stderr.strip().splitlines() or ["failed"])[-1][:120]}
    return json.loads(done.stdout.splitlines()[-1])


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their largest difference from pycotmech, and without figures where that is too large."""
    (ours,) = (np.array(row["values"]) for row in rows if row["library"] == "pycotmech")
    spread = float(np.ptp(ours))
    out = []
    for row in rows:
        if "values" in row:
            row = dict(row)
            difference = float(np.abs(np.array(row.pop("values")) - ours).max())
            row["difference"] = difference
            if difference > TOLERANCE * spread:
                row = {
                    "library": row["library"],
                    "why": f"differs by up to {difference:.2g}, of effects that span {spread:.2g}",
                }
        out.append(row)
    return out


def table(record: dict[str, Any] | None) -> str:
    """What docs/migration.md shows."""
    if record is None:
        return "Not measured yet.\n"
    out = [
        f"{record['model']}, {record['tokens']} tokens, all {record['heads']} heads, float32, {record['threads']} threads, "
        f"{record['machine']}; {record['date']}.",
        "",
        "| | lines | seconds | against pycotmech | peak memory, MiB | before it began, MiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    (ours,) = (row["seconds"] for row in record["rows"] if row["library"] == "pycotmech")
    for row in record["rows"]:
        if "why" in row:
            out.append(f"| {row['library']} | | no figures: {row['why']} | | | |")
            continue
        name = f"{row['library']} {row['version']}"
        ratio = "" if row["library"] == "pycotmech" else f"{row['seconds'] / ours:.0f} times as long"
        out.append(f"| {name} | {row['lines']} | {row['seconds']:.1f} | {ratio} | {row['peak']:.0f} | {row['before']:.0f} |")
    return "\n".join(out) + "\n"


def read() -> dict[str, Any] | None:
    return json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=RESULTS, default=list(DEFAULT), help="Which libraries to run.")
    parser.add_argument("--model", default="smollm2-135m", help="Model to ask.")
    parser.add_argument("--shots", type=int, default=2, help="Demonstrations before the question.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of PyTorch.")
    parser.add_argument("--page", action="store_true", help="Also write the record and the table of docs/migration.md.")
    parser.add_argument("--only", choices=RESULTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.only:
        print(json.dumps(answer(asked.only, asked.model, asked.shots)))
        return
    rows = []
    for library in dict.fromkeys(["pycotmech", *asked.libraries]):
        rows.append(run(library, asked.model, asked.shots, asked.threads))
        print(f"{library}: {rows[-1].get('why') or round(rows[-1]['seconds'], 1)}", file=sys.stderr, flush=True)
    if "why" in rows[0]:
        raise SystemExit(f"pycotmech: {rows[0]['why']}")
    record = {
        "model": asked.model, "tokens": rows[0]["tokens"], "heads": int(np.size(rows[0]["values"])), "threads": asked.threads,
        "machine": processor(), "date": time.strftime("%Y-%m-%d"), "rows": compared(rows),
    }  # fmt: skip
    print(table(record))
    if asked.page:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        generated.write(PAGE, table(record))


if __name__ == "__main__":
    main()

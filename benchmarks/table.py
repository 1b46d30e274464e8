"""Makes docs/performance.md from the suite's results: `python -m benchmarks.table bench-results/results.json`.

The results are kept as docs/performance.json, so that page and results can be held together. `--peers FILE` keeps those of
`make bench-peers` as well. Predictions for GPUs follow from shapes alone (`predicted.py`). Without a file the page is made
from what is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, RECORD = DOCS / "performance.md", DOCS / "performance.json"


def seconds(x: float) -> str:
    """12 ms, 1.23 s, 45.6 s, 1,234 s."""
    if x < 0.1:
        return f"{x * 1e3:.3g} ms"
    return f"{x:.3g} s" if x < 1000 else f"{x:,.0f} s"


def ratio(x: float) -> str:
    return f"{x:.2f}x" if x < 10 else f"{x:,.0f}x"


def machine_line(m: dict[str, Any]) -> str:
    """What the figures are of."""
    products = "; ".join(f"{name}: {rate:,.0f} GFLOP/s" for name, rate in m["products_gflops"].items())
    return (
        f"{m['cpu']}, {m['cores']} cores, load {m['load']} in the minute before; torch {m['torch']}, "
        f"transformers {m['transformers']}, pycotmech {m['pycotmech']}, {m['date']}. Products of matrices: "
        f"{products}; copy {m['copy_gbs']} GB/s, read and written."
    )


def name_of(row: dict[str, Any]) -> str:
    """What a row is of."""
    return f"{row['question']}, {row['size']}, {row['dtype']}, {row['threads']} thread(s)"


def line(row: dict[str, Any]) -> str:
    """One row in a line of text."""
    head = name_of(row)
    if "error" in row:
        return f"{head}: NO FIGURE: {row['error']}"
    against = "; ".join(f"{r['name']} {seconds(r['median'])}, {ratio(r['ratio']['median'])}" for r in row["rivals"])
    return f"{head}: {seconds(row['ours']['median'])}, {row['limit']['share']['median']:.0%} of the machine; {against}"


def rows(record: dict[str, Any]) -> list[str]:
    """The suite's table in Markdown: a line for each rival."""
    lines = [
        "| question | size | dtype | threads | ours | rival | its time | times ours | ours, of the machine's limit | "
        "peak memory, ours | rival's |",
        "|---|---|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        note = f" ({row['note']})" if row.get("note") else ""
        head = f"| {row['question']}{note} | {row['size']} | {row['dtype']} | {row['threads']} "
        if "error" in row:
            lines.append(f"{head}| no figure: {row['error'].replace('|', '/')} | | | | | | |")
            continue
        for i, rival in enumerate(row["rivals"]):
            first = head if i == 0 else "| | | | "
            ours = _ranged(row["ours"]) if i == 0 else ""
            share = f"{row['limit']['share']['median']:.0%}" if i == 0 else ""
            memory = [f"{x['gib']:.2f} GiB" if x.get("gib") else "" for x in (row["ours"], rival)]
            lines.append(
                f"{first}| {ours} | {rival['name']} | {_ranged(rival)}{' *' if rival['part'] else ''} "
                f"| {_ratio(rival['ratio'])} "
                f"| {share} | {memory[0] if i == 0 else ''} | {memory[1]} |"
            )
    return lines


def _ranged(x: dict[str, float]) -> str:
    return f"{seconds(x['median'])} [{seconds(x['low'])}, {seconds(x['high'])}]"


def _ratio(x: dict[str, float]) -> str:
    return f"{ratio(x['median'])} [{ratio(x['low'])}, {ratio(x['high'])}]"


def page(record: dict[str, Any]) -> str:
    """The suite's table with what it is of."""
    if not record.get("rows"):
        return "No run of the suite is recorded yet: `make bench` makes one.\n"
    said = [
        machine_line(record["machine"]),
        "",
        f"{record.get('minutes', 0):.1f} minutes. Medians [lowest, highest] of rounds in turn.",
    ]
    return "\n".join([*said, "", *rows(record), ""])


def peers_table(peers: dict[str, Any]) -> str:
    """The peers' table in Markdown."""
    if not peers.get("rows"):
        return "No run beside other libraries is recorded yet in this form: `make bench-peers` makes one.\n"
    rounds = "/".join(map(str, sorted({row["rounds"] for row in peers["rows"] if "rounds" in row})))
    lines = [
        f"{peers['cpu']}, {peers['cores']} cores; {peers['versions']}; {peers['date']}. {peers['minutes']:.1f} minutes. "
        f"Medians [lowest, highest] of {rounds} processes of each way, in turn.",
        "",
        "| | dtype | threads | time | times ours | processor time | times ours | heads run | off |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in peers["rows"]:
        head = f"| {row['name']} | {row['dtype']} | {row['threads']} "
        if "note" in row:
            lines.append(f"{head}| {row['note'].replace('|', '/')} | | | | | |")
            continue
        cells = [_ranged(row["seconds"]), ratio(row["ratio"]) if "ratio" in row else "", seconds(row["cpu"]["median"])]
        cells += [ratio(row["cpu_ratio"]) if "cpu_ratio" in row else "", str(row["ran"]), f"{row['difference']:.2g}"]
        lines.append(f"{head}| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def read() -> dict[str, Any]:
    return json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}


def write(record: dict[str, Any]) -> None:
    """Keeps the record and writes the page's generated parts."""
    from tests.reference import generated

    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    for name, text in parts(record).items():
        generated.write(PAGE, text, name)


def parts(record: dict[str, Any]) -> dict[str, str]:
    """The generated parts of the page by name."""
    from benchmarks import predicted

    return {
        "table": page(record.get("suite", {})),
        "peers": peers_table(record.get("peers", {})),
        "predicted": predicted.table(),
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="results.json of the suite")
    parser.add_argument("--peers", type=Path, help="the JSON of bench_peers")
    given = parser.parse_args(words)
    record = read()
    for name, path in (("suite", given.results), ("peers", given.peers)):
        if path is not None:
            record[name] = json.loads(path.read_text("utf-8"))
    write(record)
    print(f"{PAGE} and {RECORD} are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

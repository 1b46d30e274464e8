"""Arguments and prompt pairs of the shell's tests."""

from __future__ import annotations

import json
from pathlib import Path

SMALL = ("--model", "tiny-cot", "--examples", "2", "--shots", "0", "--steps", "1,5")
CLEAN = "Every wumpus is a lempus . Max is a wumpus . Max is a"
CORRUPTED = "Every wumpus is a tumpus . Max is a wumpus . Max is a"


def pairs_file(folder: Path, *pairs: dict) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    return path

"""Counts the verdicts on nulls and planted models, and says what fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binom

from benchmarks.validity.claims import BORNE_OUT, NOT_BORNE_OUT, NOT_DECIDED

NULLS, LARGE, PLANTED = "nulls", "smollm2", "planted"
LEVEL = 0.05
"""How often a claim may be borne out where there is nothing to find."""


def allowed(n: int) -> int:
    """Returns how many of n random models may bear a claim out: the number that a test of level LEVEL exceeds in at most 2.5 %
    of such runs, 16 of 200."""
    return int(binom.ppf(0.975, n, LEVEL)) if n else 0


def counted(models: Sequence[Mapping[str, Any]], part: str, claim: str) -> dict[str, Any]:
    """Counts the verdicts on one claim over the models of a part: a number for each word and "no data", and why."""
    rows = [m["verdicts"][claim] for m in models if m["part"] == part and claim in m["verdicts"]]
    missing = [row["no_data"] for row in rows if row.get("no_data")]
    words = [row["word"] for row in rows if not row.get("no_data")]
    return {
        "claim": claim,
        "models": len(rows),
        **{word: words.count(word) for word in (BORNE_OUT, NOT_BORNE_OUT, NOT_DECIDED)},
        "no data": len(missing),
        "why": sorted(set(missing), key=missing.count, reverse=True),
    }


def claims_of(models: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """The claims that the models of a part have verdicts of, in the order of first mention."""
    return list(dict.fromkeys(claim for m in models if m["part"] == part for claim in m["verdicts"]))


def failures(models: Sequence[Mapping[str, Any]], tables: Mapping[str, Any]) -> list[str]:
    """Returns what does not hold, one sentence each."""
    out = []
    for part in (NULLS, LARGE):
        for name in claims_of(models, part):
            row = counted(models, part, name)
            if row[BORNE_OUT] > allowed(row["models"]):
                out.append(
                    f"{name}: borne out on {row[BORNE_OUT]} of {row['models']} random models ({part}), "
                    f"at most {allowed(row['models'])} are chance"
                )
            if row["no data"]:
                out.append(f"{name}: no data on {row['no data']} of {row['models']} random models ({part}): {row['why'][0]}")
    for m in models:
        if m["part"] == PLANTED:
            out += [
                f"{claim}: {row['word']} on the planted model {m['name']}: {row.get('no_data') or row['evidence']}"
                for claim, row in m["verdicts"].items()
                if (row["word"] == BORNE_OUT) != m["true"] or "no_data" in row
            ]
    for table, found in tables.items():
        out += [f"{table}: {row}" for row in found["rows"] if row.get("holds") is False]
    return out

"""The claims of the paper's abstract, one file each, and what a model's results say to each.

Each file has a `judge` from results to a verdict, and a CLAIM with its text and its null.
Tests: `test_verdict.py` for `rift`; the others have tests of their own names.
"""

from __future__ import annotations

from pycotmech.paper.claims import abidance, mixing, movers, pathways, rift, shared_heads, sources, writers
from pycotmech.paper.claims.verdict import Claim, Verdict, decided

CLAIMS: tuple[Claim, ...] = (
    shared_heads.CLAIM,
    movers.CLAIM,
    mixing.CLAIM,
    pathways.CLAIM,
    sources.CLAIM,
    writers.CLAIM,
    rift.CLAIM,
    abidance.CLAIM,
)

__all__ = ["CLAIMS", "Claim", "Verdict", "decided"]

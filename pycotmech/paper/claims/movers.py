"""Heads that move information along relations lie in the first half of the layers (abstract; E10)."""

from __future__ import annotations

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, is_above


def judge(results: Results) -> Verdict:
    found = results["relation_heads"]
    heads, share = found.heads("related"), found.first_half("related")
    if not heads:
        return Verdict("not borne out", "no head looks along related words beyond chance")
    evidence = (
        f"{len(heads)} heads look along related words; {share.words()} of their score lies in the first half of the layers"
    )
    return is_above(share, 0.5, f"{evidence}; n = {int(share.n)}")


CLAIM = Claim(
    "movers",
    "Heads that move information along the relations of the ontology appear in the first half of the layers.",
    "abstract; E10",
    judge,
    "score beyond chance",
)

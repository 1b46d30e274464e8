"""How things are called where a person reads them."""

from __future__ import annotations

import textwrap

METRIC_NAMES = {
    "kl": "KL divergence",
    "logit_diff": "logit difference",
    "prob": "answer probability",
}


METRIC_UNITS = {"kl": "nat", "logit_diff": "logit", "prob": "probability"}


def effect_label(metric: str, direction: str, normalised: bool) -> str:
    """What the numbers of a sweep are: "share of KL divergence restored", or "change of logit difference"."""
    name = METRIC_NAMES.get(metric, metric)
    if not normalised:
        return f"change of {name}"
    return f"share of {name} {'restored' if direction == 'denoise' else 'destroyed'}"


def step_title(step: int, kind: str, sample: str = "") -> str:
    """ "Step 5, induction" and under it its words in an example; for pairs "Prompt pairs"."""
    if kind == "pair":
        return "Prompt pairs"
    return f"Step {step}, {kind}" + (f"\n“{sample}”" if sample else "")


def sample_of(record: dict | None, step: int) -> str:
    """The last few words before a step's answer in one example of examples.jsonl, and the answer: "… Max is a → tumpus"."""
    for found in (record or {}).get("steps", []):
        if found["step"] == step:
            words = found["prefix_text"].split()
            front = " ".join(words[-4:])
            return f"{'… ' if len(words) > 4 else ''}{front}{' ' if front else ''}→ {found['answer_word']}"
    return ""


def wrapped(text: str, width: int = 30) -> str:
    """The text in lines of at most so many characters, cut between words."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False))

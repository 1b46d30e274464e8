"""Attention without its T x T patterns: summaries over segments, rows and top keys; scores of known kinds of heads.

Tests: `test_hf.py` for `capture`; `test_summary.py` for `prompts`, `results`, `statistics`; the others have tests of their
own names.
"""

from pycotmech.attention.capture import AttentionCapture, capture_attention
from pycotmech.attention.hf import register_attention
from pycotmech.attention.results import AttentionSummary
from pycotmech.attention.scores import HeadScores, head_scores, repeated_tokens
from pycotmech.attention.summary import attention_summary

__all__ = [
    "AttentionCapture",
    "AttentionSummary",
    "HeadScores",
    "attention_summary",
    "capture_attention",
    "head_scores",
    "register_attention",
    "repeated_tokens",
]

"""Any chain of thought: traces cut into sentences, which heads look where, what each sentence causes, and when it is decided.

    traces = pcm.traces.Trace.from_jsonl(model, "traces.jsonl")
    pcm.traces.receiver_heads(model, traces)

Every analysis is a function in a file of its own name in `analyses`.

Tests: `test_trace.py` and `test_logs.py` for `checked`, `reading`, `generating`; `test_sentence_attention.py` for `figures`,
`result`;
`test_suppress.py` for `cut_runs`; `test_parts.py` for `parts`.
"""

from __future__ import annotations

from pycotmech import _lazy
from pycotmech.traces.splitting import split

_PLACES = {
    "AnswerPaths": ".analyses.answer_paths",
    "ChainUse": ".analyses.chain_use",
    "EarlyAnswers": ".analyses.early_answers",
    "HeadInfluence": ".analyses.head_influence",
    "Parts": ".parts",
    "ReceiverHeads": ".analyses.receiver_heads",
    "Sentence": ".trace",
    "SentenceAttention": ".analyses.sentence_attention",
    "Suppression": ".analyses.suppress",
    "Trace": ".trace",
    "answer_paths": ".analyses.answer_paths",
    "early_answers": ".analyses.early_answers",
    "head_influence": ".analyses.head_influence",
    "is_chain_used": ".analyses.chain_use",
    "kurtosis": ".analyses.sentence_attention",
    "receiver_heads": ".analyses.receiver_heads",
    "sentence_attention": ".analyses.sentence_attention",
    "suppress": ".analyses.suppress",
    "vertical_scores": ".analyses.sentence_attention",
}
"""Public name -> its module. Loaded when first used."""

__all__ = ["split", *_PLACES]


def __getattr__(name: str):
    return _lazy.attribute(__name__, name, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Any chain of thought: traces cut into sentences, which heads look where, what each sentence causes, and when it is decided.

    traces = pcm.traces.Trace.from_jsonl(model, "traces.jsonl")
    pcm.traces.receiver_heads(model, traces)

Every analysis is a function in a file of its own name in `analyses`.

Tests: `test_trace.py` and `test_logs.py` for `checked`, `reading`, `generating`; `test_sentence_attention.py` for `figures`,
`result`;
`test_suppress.py` for `cut_runs`; `test_parts.py` for `parts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycotmech import _lazy
from pycotmech.traces.splitting import split

if TYPE_CHECKING:
    from pycotmech.traces.analyses.answer_paths import AnswerPaths as AnswerPaths
    from pycotmech.traces.analyses.answer_paths import answer_paths as answer_paths
    from pycotmech.traces.analyses.chain_use import ChainUse as ChainUse
    from pycotmech.traces.analyses.chain_use import is_chain_used as is_chain_used
    from pycotmech.traces.analyses.early_answers import EarlyAnswers as EarlyAnswers
    from pycotmech.traces.analyses.early_answers import early_answers as early_answers
    from pycotmech.traces.analyses.head_influence import HeadInfluence as HeadInfluence
    from pycotmech.traces.analyses.head_influence import head_influence as head_influence
    from pycotmech.traces.analyses.receiver_heads import ReceiverHeads as ReceiverHeads
    from pycotmech.traces.analyses.receiver_heads import receiver_heads as receiver_heads
    from pycotmech.traces.analyses.sentence_attention import SentenceAttention as SentenceAttention
    from pycotmech.traces.analyses.sentence_attention import kurtosis as kurtosis
    from pycotmech.traces.analyses.sentence_attention import sentence_attention as sentence_attention
    from pycotmech.traces.analyses.sentence_attention import vertical_scores as vertical_scores
    from pycotmech.traces.analyses.suppress import Suppression as Suppression
    from pycotmech.traces.analyses.suppress import suppress as suppress
    from pycotmech.traces.parts import Parts as Parts
    from pycotmech.traces.trace import Sentence as Sentence
    from pycotmech.traces.trace import Trace as Trace

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


def __getattr__(name: str) -> Any:
    return _lazy.attribute(__name__, name, _PLACES)


def __dir__() -> list[str]:
    return sorted(__all__)

"""What the analyses of traces return: labelled arrays, as those of the paper, and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import xarray as xr

from pycotmech.cot.tools.result import Analysis

if TYPE_CHECKING:
    from pycotmech.model import Model
    from pycotmech.traces.trace import Trace

SHOWN = 60
"""Letters of a sentence that are shown."""


class TraceAnalysis(Analysis):
    """A result on one trace, or over several (axis "trace"). data: an xarray Dataset with labelled axes. about: model, traces,
    definition, settings. `save`, `load` and `interval(..., over="trace")` as of `pycotmech.cot.Analysis`."""

    @classmethod
    def of_traces(
        cls,
        model: Model,
        traces: Sequence[Trace],
        data: xr.Dataset,
        definition: str,
        settings: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> Self:
        """A result on these traces."""
        about = {
            "model": model.name,
            "notes": [*model.notes, *notes],
            "dtype": str(model.cfg.dtype).removeprefix("torch."),
            "source": cls.source,
            "definition": definition,
            "settings": dict(settings),
            "traces": [trace.title for trace in traces],
            "sentences": [[shown(s.text) for s in trace.sentences] for trace in traces],
        }
        return cls(data, about)

    def small_print(self, variable: str = "", about: str = "") -> list[str]:
        """What a figure says below: the traces, the definition, the model's notes."""
        n = len(self.about["traces"])
        which = self.about["traces"][0] if n == 1 else f"{n} traces"
        return [f"{which}; {about}{self.about['definition']}", *self.about["notes"]]

    def sentence(self, i: int, trace: int = 0) -> str:
        """The number of a sentence and how it begins, if its text is known."""
        text = self.about["sentences"][trace][i]
        return f"{i} “{text}”" if text else str(i)


def lines_of(frame: Any) -> Iterator[Any]:
    """The lines of a table, its columns as attributes."""
    return frame.itertuples()


def shown(text: str) -> str:
    """A text as one short line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def checked_traces(traces: Any) -> list[Trace]:
    """One trace or several as a list. Raises TypeError or ValueError naming `traces`."""
    from pycotmech.traces.trace import Trace

    if isinstance(traces, Trace):
        return [traces]
    if not isinstance(traces, Sequence) or isinstance(traces, str):
        raise TypeError(f"traces: got {type(traces).__name__}; expected a pycotmech.traces.Trace, or a list of them")
    for i, trace in enumerate(traces):
        if not isinstance(trace, Trace):
            raise TypeError(f"traces[{i}]: got {type(trace).__name__}; expected a pycotmech.traces.Trace")
    if not traces:
        raise ValueError("traces: the list is empty; expected at least one")
    return list(traces)


def check_trace(trace: Any, d_vocab: int) -> Trace:
    """The trace. Raises TypeError or ValueError naming `trace` if it is none, or its tokens are no tokens of the model."""
    from pycotmech.traces.trace import Trace

    if not isinstance(trace, Trace):
        raise TypeError(f"trace: got {type(trace).__name__}; expected a pycotmech.traces.Trace")
    if int(trace.tokens.max()) >= d_vocab:
        raise ValueError(
            f"trace: holds the token {int(trace.tokens.max())}, outside the model's vocabulary of {d_vocab}; expected a trace "
            "made with this model's tokenizer"
        )
    return trace

"""The results folder of `pycotmech trace`: analyses over all traces, and of each trace in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech._choices import did_you_mean, shortened
from pycotmech.runs.for_tools import HeadValues
from pycotmech.runs.results_base import AnalysesResults, read_facts
from pycotmech.runs.status import TRACE, names_of_traces

if TYPE_CHECKING:
    from pycotmech.cot.tools.result import Analysis


class TraceResults(AnalysesResults):
    """Results of `pycotmech trace`: a dataset for each finished analysis.

    names: "receiver_heads" and "chain_use" are of all traces; "trace_000/suppress", "trace_000/early_answers" and
    "trace_000/answer_paths" of the first trace, and so on.
    """

    kind = "trace"

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return names_of_traces(self.folder)

    def _facts(self) -> dict[str, Any]:
        facts = read_facts(self.folder / TRACE)
        prompts, identity = facts.pop("prompts", None), facts.get("identity")
        if isinstance(identity, dict) and prompts is not None:
            facts["identity"] = {**identity, "prompts": prompts}
        return facts

    def _store(self, name: str) -> Path:
        return self.folder / f"{name}.zarr"

    def _classes(self) -> Mapping[str, type[Analysis]]:
        from pycotmech import traces as t

        return {c.name: c for c in (t.ReceiverHeads, t.ChainUse, t.Suppression, t.EarlyAnswers, t.AnswerPaths)}

    def head_values(self, name: str | None = None) -> HeadValues:
        """What each head adds to the answer's logit from each part of a trace. name: of an answer_paths, if there are several.

        Source: `pycotmech.traces.answer_paths`.
        """
        paths = [n for n in self.names if n.endswith("/answer_paths")]
        if name is None and len(paths) == 1:
            name = paths[0]
        if name not in paths:
            expected = f"{shortened(paths) or 'none: no trace has answer_paths'}{did_you_mean(name, paths)}"
            raise ValueError(f"name: {'missing' if name is None else f'got {name!r}'}; expected one of {expected}")
        found = self.analysis(name)
        parts = [str(part) for part in found.data["part"].values]
        texts = {f"sentence {i}": str(text) for i, text in enumerate(found.about["sentences"][0])}
        values = found.data["contribution"].transpose("layer", "part", "head").values
        return HeadValues(values, [f" {texts.get(part, part)}" for part in parts])

    def _details(self) -> list[str]:
        n = len({above for name in self.names if (above := name.rpartition("/")[0])})
        return [f"  traces with results of their own: {n}"]

"""The page of `pycotmech paper`: the claims first, each with its verdict and what it rests on, then every analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pycotmech._words import listed, plural
from pycotmech.cot.analyses.knock_out_curve import KnockOutCurve
from pycotmech.cot.analyses.patch_steps import PatchSteps
from pycotmech.cot.tools.result import Analysis
from pycotmech.paper.claims import CLAIMS, Verdict
from pycotmech.paper.claims import Claim as PaperClaim
from pycotmech.paper.one_setting import SettingOutcome, stored
from pycotmech.paper.settings import EASY, HARDER
from pycotmech.paper.settings_table import needed, pooled
from pycotmech.report import charts
from pycotmech.report.charts import Chart
from pycotmech.report.of_analyses import charts_of, knock_outs, writers_by_layer
from pycotmech.report.page import Claim, Draw, Facts, Note, Page, Part, Section, Sentences, Table, capital, sentence, table_of
from pycotmech.report.run import WITHOUT_VIEWS, failures_of, made
from pycotmech.runs.head_views import read_head_views
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.results import PaperResults
from pycotmech.stats import bootstrap

_RESTS_ON = {
    "shared_heads": "knock_out_curve",
    "movers": "relation_heads",
    "mixing": "pair_probes",
    "pathways": "answer_writers",
    "sources": "answer_sources",
    "writers": "answer_writers",
    "rift": "functional_rift",
    "abidance": "context_abidance",
}
"""The analysis whose chart stands beside a claim."""
_ORDER = (
    "patch_steps", "attention_by_source", "answer_writers", "information_flow", "answer_sources", "functional_rift",
    "pair_probes", "decision_horizon",
)  # fmt: skip
"""Analyses that come first, in the order in which they explain one another."""
_SHORT = {
    "patch_steps": "Each head by itself", "mlp_share": "MLPs and attention", "induction_heads": "Inductive steps",
    "decision_heads": "Heads that carry the answer", "copy_heads": "Heads that copy", "knock_out_curve": "Knock-out curve",
    "set_transfer": "One step's heads for others", "head_overlap": "Overlap of sets", "keep_only": "Sets alone",
    "remove": "Sets without members", "attention_by_source": "Attention by source", "answer_writers": "Writers",
    "information_flow": "Information flow", "answer_sources": "Sources of the answer", "context_abidance": "Context-abidance",
    "pair_probes": "Probes", "relation_heads": "Relation heads", "functional_rift": "Rift", "decision_horizon": "Horizon",
    "circuits": "Circuits", "head_interactions": "Interactions",
}  # fmt: skip
"""Names in the contents."""
_LINES = 40
"""Lines of a table that are shown; the folder has all of them."""


class _Notes(ProgressReporter):
    """Keeps what is said of damaged data."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def paper_page(results: PaperResults) -> Page:
    """The page of a folder of `paper`, finished or not."""
    notes = _Notes()
    outcome = stored(EASY, results.folder, None, notes) or SettingOutcome(EASY, verdicts=[])
    harder = {
        name: found
        for name, setting in results.settings.items()
        if (found := stored(name, setting.folder, None, notes)) is not None
    }
    provenance, found = results.provenance, outcome.results
    model = str(provenance.get("model") or "the model")
    views = read_head_views(results.folder)
    drawn = _Charts(found, WITHOUT_VIEWS if views is None else "")
    sections = []
    if outcome.verdicts:
        claims = [_claim(claim, verdict, drawn) for claim, verdict in _in_order(outcome.verdicts)]
        lead = (
            "The claims of the paper's abstract, each judged by an interval and a null that is measured in the same run. The "
            "paper's figures are for Llama-2 7B; another model need not agree."
        )
        sections.append(Section("claims", "The paper's claims, and what this model shows", claims, lead=lead, short="Claims"))
    if harder:
        sections.append(_settings([outcome, *harder.values()]))
    order = [*(n for n in _ORDER if n in found), *(n for n in found if n not in _ORDER)]
    of_heads = [n for n in order if any(chart["kind"] == "heads" and chart["views"] for chart in drawn.of(n))]
    said_at = of_heads[0] if of_heads and views is None else None
    sections += [_analysis(name, found[name], drawn, name == said_at) for name in order]
    if outcome.costs:
        sections.append(_costs(outcome))
    task = outcome.task
    return Page(
        title=f"{model} compared with “How to think step-by-step”",
        kicker="All analyses of arXiv 2402.18312 on one model",
        asked="How does the model answer step by step: which heads, from where, through which layers, and does it agree with "
        "the paper's claims?",
        answer=_answer(model, outcome, harder),
        facts={
            "Model": model,
            "Problems": None if task is None else f"{task.examples}, {task.steps} steps",
            "Steps that are right": None if task is None else f"{task.right} of {task.steps}",
            "Analyses": f"{len(found)} finished",
            "Harder settings": ", ".join(harder),
            "Precision": provenance.get("dtype"),
        },
        sections=sections,
        notes=[
            *(sentence(note) for note in provenance.get("notes") or []),
            *(sentence(text) for text in notes.said),
            *failures_of(results),
        ],
        views=views,
        made=made(provenance),
    )


class _Charts:
    """The charts of each analysis, made once: a claim and a section may show the same."""

    def __init__(self, results: Mapping[str, Analysis], note: str) -> None:
        self._results, self._made, self._note = results, {}, note
        curve = results.get("knock_out_curve")
        self._details = knock_outs(curve) if isinstance(curve, KnockOutCurve) else {}

    def of(self, name: str) -> list[Chart]:
        if name not in self._made:
            details = self._details if name == "patch_steps" else None
            made = charts_of(name, self._results[name], details) if name in self._results else []
            for chart in made:
                if chart["kind"] == "heads" and chart["views"]:
                    chart["note"] = self._note
            self._made[name] = made
        return self._made[name]

    def beside(self, claim: str) -> Chart | None:
        """The chart that a claim rests on."""
        name = _RESTS_ON.get(claim, "")
        if claim == "writers" and name in self._results:
            return self._made.setdefault("writers by layer", [writers_by_layer(self._results[name])])[0]
        return next(iter(self.of(name)), None)


def _in_order(verdicts: Sequence[tuple[PaperClaim, Verdict]]) -> list[tuple[PaperClaim, Verdict]]:
    """Claims that were tried before those without data."""
    return sorted(verdicts, key=lambda pair: not pair[1].data)


def _claim(claim: PaperClaim, verdict: Verdict, drawn: _Charts) -> Claim:
    parts: list[Part] = []
    if verdict.values is not None and (x := verdict.interval) is not None:
        unit = "share" if verdict.share else "number"
        numbers = (float(x.mean), float(x.low), float(x.high), verdict.threshold)
        words = f"The quantity that decides it, over {plural(int(x.n), 'example')}"
        parts.append(Draw(charts.interval(words, words, *numbers, unit=unit, values=verdict.values), compact=True))
    if (chart := drawn.beside(claim.name)) is not None:
        parts.append(Draw(chart, compact=True))
    null = f"{claim.null}: {verdict.null}" if verdict.null else claim.null
    more = needed(verdict)
    more = f"Examples: {more}." if more else ""
    return Claim(claim.text, verdict.word, capital(verdict.evidence), claim.source, capital(null), more, parts)


def _answer(model: str, outcome: SettingOutcome, harder: Mapping[str, SettingOutcome]) -> list[str]:
    tried = [(claim, verdict) for claim, verdict in outcome.verdicts if verdict.data]
    if not tried:
        return [f"No claim can be judged yet: {plural(len(outcome.results), 'analysis', 'analyses')} finished."]
    by_word = {word: [c for c, v in tried if v.word == word] for word in ("borne out", "not borne out", "not decided")}
    task = outcome.task
    right = ""
    if task is not None:
        right = f"{model} gets {task.right} of {task.steps} steps of {plural(task.examples, 'problem')} right. "
    counts = [f"{len(found)} {'is' if len(found) == 1 else 'are'} {word}" for word, found in by_word.items() if found]
    first = f"{right}Of the {len(tried)} claims of the paper that were tried, {listed(counts)}."
    second = []
    for word in ("borne out", "not borne out"):
        if by_word[word]:
            second.append(f"{capital(word)}: {' '.join(claim.text for claim in by_word[word])}")
    patched: Any = outcome.results.get("patch_steps")
    if isinstance(patched, PatchSteps):
        table = patched.table(1)
        if len(table):
            best = max(table.to_dict("records"), key=lambda row: row["mean"])
            second.append(
                f"By itself no head restores more of the clean prediction than L{best['layer']}H{best['head']} at step "
                f"{best['step']} ({best['kind']}): {best['mean']:.0%}{bootstrap.ends(best['low'], best['high'])}, "
                f"n = {best['n']}{' held out' if best['held_out'] else ''}."
            )
    if harder:
        second.append(f"The claims were also tried in {plural(len(harder), 'harder setting')}: {listed(list(harder))}.")
    return [first, *second]


def _analysis(name: str, result: Analysis, drawn: _Charts, without_views: bool) -> Section:
    """without_views: whether to say here that what heads attend to and write is not stored."""
    parts: list[Part] = [Draw(chart) for chart in drawn.of(name)]
    if without_views:
        parts.append(Note(WITHOUT_VIEWS))
    parts.append(Sentences([sentence(line) for line in result.findings()]))
    table = result.table()
    if len(table):
        all_of_it = "" if len(table) <= _LINES else f", the first {_LINES} of {len(table)} lines"
        parts.append(table_of(f"Table {name}{all_of_it} (tables/{name}.csv)", table, most=_LINES))
    lead = f"{result.definition_words} ({result.about.get('source', '')})."
    return Section(name.replace("_", "-"), result.title, parts, lead=capital(lead), short=_SHORT.get(name, ""))


def _settings(outcomes: Sequence[SettingOutcome]) -> Section:
    """Claims by settings of the task."""
    names = [o.name for o in outcomes]
    rows: list[list[str]] = [
        ["steps that are right", *("–" if o.task is None else f"{o.task.right} of {o.task.steps}" for o in outcomes), ""]
    ]
    for claim in CLAIMS:
        found = [next((v for c, v in o.verdicts if c.name == claim.name and v.data), None) for o in outcomes]
        if any(v is not None for v in found[1:]):
            cells = ["–" if v is None else v.cell() for v in found]
            rows.append([claim.text, *cells, pooled([v for v in found if v is not None])])
    why = {setting.name: setting.why for setting in HARDER}
    failures = [f"{o.name}: {o.failure}" for o in outcomes if o.failure]
    parts: list[Part] = [
        Facts({name: why[name] for name in names if name in why}),
        Table("Each claim in each setting, with the quantity that decides it", ["claim", *names, "pooled"], rows),
        *(Note(text) for text in failures),
    ]
    return Section("settings", "The claims in harder settings", parts, short="Harder settings")


def _costs(outcome: SettingOutcome) -> Section:
    rows: list[list[Any]] = []
    for name, cost in outcome.costs.items():
        if isinstance(cost, Mapping):
            forwards, flop, seconds = (cost.get(k) for k in ("token_forwards", "flop", "seconds"))
            rows.append(
                [
                    name, "–" if forwards is None else f"{forwards:,.0f}", "–" if flop is None else f"{flop / 1e12:,.2f}",
                    "–" if seconds is None else f"{seconds:,.1f}",
                ]
            )  # fmt: skip
    columns = ["analysis", "token-forwards", "TFLOP", "seconds"]
    return Section("cost", "What it cost", [Table("Work of each analysis, counted while it ran", columns, rows, columns[1:])])

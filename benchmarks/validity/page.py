"""Writes docs/validity.md from the results of a folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.validity import kept
from benchmarks.validity.claims import BORNE_OUT, NOT_BORNE_OUT, NOT_DECIDED
from benchmarks.validity.judge import LARGE, NULLS, PLANTED, allowed, claims_of, counted, failures
from pycotmech.paper import CLAIMS

TITLES = {
    "coverage": "How often intervals contain the true value",
    "levels": "How often tests find something when there is nothing to find",
    "recovery": "Planted circuits that are recovered",
}
PIVOTED = {"coverage": ("covered", ("interval", "at_least", "at_most")), "levels": ("level", ("test", "null"))}
"""Tables with a row for each number of examples: the column that is shown, and the columns that name the kind."""
INTROS = {
    "coverage": (
        "Samples are drawn from a known distribution. The table shows how often a 95 % interval of `pycotmech.stats` contains "
        "the true value, and the range of this coverage that its docstring states. Bold: outside this range by more than "
        "three standard errors of the simulation. Intervals that resample one statistic at a time have a tenth of the draws. "
        "{about}"
    ),
    "levels": (
        "Samples are drawn from distributions in which there is nothing to find. The table shows how often a test of level 5 % "
        "finds any of 64 heads, and how often an interval lies above a threshold that equals the true value. Bold: more often "
        "than 5 % by more than three "
        "standard errors, if the test is meant to hold its level. The tests assume values that are symmetric about 0; with "
        "skewed values they give no guarantee, and the table shows what happens. {about}"
    ),
    "recovery": (
        "Every circuit was written into the weights by hand. Each is drawn several times with different noise, and in every "
        "second draw at different heads. Recovered: the analysis names exactly what was planted. {about}"
    ),
}


def written(folder: Path) -> str:
    """Returns the text of the page. Raises ValueError if the folder holds no results."""
    models, tables = kept.models(folder), kept.tables(folder)
    if not models and not tables:
        raise ValueError(f"out: {folder} holds no results; expected a folder of `python -m benchmarks.validity`")
    parts = ["# Validity: claims, intervals and tests where the truth is known", "", _intro(models, tables), ""]
    if any(m["part"] == NULLS for m in models):
        parts += ["## Claims on random models", "", _nulls_intro(models), "", _verdicts(models, NULLS), ""]
        parts += _examples(models)
    if any(m["part"] == PLANTED for m in models):
        parts += ["## Claims on models in which they were planted", "", _PLANTED_INTRO, "", _positives(models), ""]
    if any(m["part"] == LARGE for m in models):
        parts += [
            "## Claims on random models of SmolLM2-135M's shape",
            "",
            _large_intro(models),
            "",
            _verdicts(models, LARGE),
            "",
        ]
    for name, found in tables.items():
        about = ", ".join(f"{key}: {value}" for key, value in found.items() if key not in ("rows", "made"))
        intro = INTROS.get(name, "{about}").format(about=about[:1].upper() + about[1:] + "." if about else "").strip()
        parts += [f"## {TITLES.get(name, name)}", "", intro, "", _simulation(name, found["rows"]), ""]
    return "\n".join(parts).rstrip() + "\n"


def _intro(models: Sequence[Mapping[str, Any]], tables: Mapping[str, Any]) -> str:
    wrong = failures(models, tables)
    summary = "Every check on this page passed." if not wrong else "Failed:\n\n" + "\n".join(f"* {x}" for x in wrong)
    made = [m["made"] for m in models] + [t["made"] for t in tables.values()]

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(m[key]) for m in made))

    dates = sorted({m["date"] for m in made})
    return "\n".join(
        [
            "This page is generated: `make nulls` (`python -m benchmarks.validity`) computes its results, and "
            "`python -m benchmarks.validity --page` writes it.",
            "A claim that is borne out by random weights says nothing about a trained model. Neither does a claim that is not "
            "borne out where it is true.",
            "",
            summary,
            "",
            f"pycotmech {values('pycotmech')} (commit {values('commit')}), torch {values('torch')}, transformers "
            f"{values('transformers')}, numpy {values('numpy')}, Python {values('python')}; {values('processor')}; "
            f"{dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}.",
        ]
    )


def _nulls_intro(models: Sequence[Mapping[str, Any]]) -> str:
    toys = [m for m in models if m["part"] == NULLS]
    settings, shapes = toys[0]["settings"], [m["shape"] for m in toys]
    flat = sum(s["attention"] == "flat" for s in shapes)
    steps = f"steps {', '.join(map(str, settings['steps']))}"
    n = len(toys)
    return (
        f"{n} Llama models with random weights, seeds {min(m['seed'] for m in toys)} to {max(m['seed'] for m in toys)}: "
        f"{_range(s['n_layers'] for s in shapes)} layers, {_range(s['n_heads'] for s in shapes)} heads on "
        f"{_range(s['n_key_value_heads'] for s in shapes)} key-value heads, widths of "
        f"{_range(s['d_model'] for s in shapes)}; {sum(s['tied'] for s in shapes)} with one matrix for embedding and "
        f"unembedding; {n - flat} with peaked and {flat} with flat attention. Each has {settings['examples']} examples of its "
        f"own with {settings['shots']} demonstration(s), {steps}. Every step counts, since a random model gets none right. The "
        f"analyses are those of `pycotmech paper`, with its defaults.\n\n"
        f"A claim may be borne out on {allowed(n)} of {n} models: a test of level 5 % exceeds that in at most 2.5 % of such "
        "tables. No data: an analysis fails, or finds nothing to judge; then the random models do not test the claim, which "
        "counts as a failure. The null of a claim is what could support it by accident; `pycotmech paper` reports it in the "
        "same row."
    )


_PLANTED_INTRO = (
    "The same claims on models whose weights were written by hand (`tests/reference/planted`). A claim has to be borne out "
    "where it was planted. It must not be borne out where only its null was planted: what could support it by accident."
)


def _large_intro(models: Sequence[Mapping[str, Any]]) -> str:
    large = [m for m in models if m["part"] == LARGE]
    settings = large[0]["settings"]
    return (
        f"{len(large)} model(s) with random weights of SmolLM2-135M's shape (30 layers, 9 heads on 3 key-value heads, width "
        f"576, its tokenizer), seeds {min(m['seed'] for m in large)} to {max(m['seed'] for m in large)}, "
        f"{settings['examples']} examples each. At most {allowed(len(large))} of {len(large)} may bear a claim out by chance."
    )


def _verdicts(models: Sequence[Mapping[str, Any]], part: str) -> str:
    nulls = {claim.name: claim.null for claim in CLAIMS}
    rows = [counted(models, part, name) for name in claims_of(models, part)]
    head = ("claim", "its null", "models", BORNE_OUT, NOT_BORNE_OUT, NOT_DECIDED, "no data")
    return _table(head, [(r["claim"], nulls.get(r["claim"], ""), *(r[k] for k in head[2:])) for r in rows])


def _examples(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the verdicts on the first random model, as an example of what was judged."""
    first = min((m for m in models if m["part"] == NULLS), key=lambda m: m["seed"])
    rows = [(name, row["word"], row.get("no_data") or row["evidence"], row["null"]) for name, row in first["verdicts"].items()]
    return [
        f"The verdicts on the first model (seed {first['seed']}):",
        "",
        _table(("claim", "verdict", "evidence", "null"), rows),
        "",
    ]


def _positives(models: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for m in models:
        if m["part"] == PLANTED:
            for claim, row in m["verdicts"].items():
                what = "the claim" if m["true"] else "its null"
                said = row.get("no_data") or row["evidence"]
                rows.append((claim, what, m["name"].split(": ", 1)[-1], row["word"], said, row["null"]))
    order = [claim.name for claim in CLAIMS]
    rows.sort(key=lambda row: (order.index(row[0]) if row[0] in order else len(order), row[1] != "the claim"))
    missing = [name for name in order if name not in {row[0] for row in rows if row[1] == "the claim"}]
    note = f"\n\nWithout a planted model: {', '.join(missing)}." if missing else ""
    return _table(("claim", "planted", "model", "verdict", "evidence", "what the null gives"), rows) + note


def _simulation(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of a simulation, with its rows as they are stored.

    Tables of PIVOTED have a row for each kind and a column for each number of examples, bold where a promise is not kept.
    """
    if name not in PIVOTED:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        shown = [c for c in columns if c != "otherwise" or any(row.get(c) for row in rows)]
        return _table([c.replace("_", " ") for c in shown], [[row.get(c, "") for c in shown] for row in rows])
    value, kinds = PIVOTED[name]
    numbers = sorted({row["n"] for row in rows})
    found: dict[tuple, dict[int, str]] = {}
    for row in rows:
        cells = found.setdefault(tuple(row[kind] for kind in kinds), {})
        cells[row["n"]] = f"**{row[value]:.1%}**" if row.get("holds") is False else f"{row[value]:.1%}"
    head = [*(kind.replace("_", " ") for kind in kinds), *(f"n = {n}" for n in numbers)]
    return _table(head, [(*kind, *(cells.get(n, "") for n in numbers)) for kind, cells in found.items()])


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    out = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*out, *("| " + " | ".join(_cell(x) for x in row) + " |" for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _range(values: Iterable[Any]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"

"""Every public result shows itself: the classes are read off the public functions, and each is tried with numbers, and with
texts that would be markup."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech.cot import analyses
from pycotmech.display import Described, Displayed, View
from tests.display.made import DESCRIBED, FOLDERS, HOSTILE, MADE, filled, pair, task

PACKAGES = ("", ".attention", ".cost", ".cot", ".exports", ".lens", ".model", ".paper", ".patching", ".runs", ".traces")
BASES = ("Analysis", "Results", "AnalysesResults")
"""Kinds of results that are made of their own kinds only."""

NO_RESULTS = {
    "AttentionCapture": "collects while a Hugging Face model runs, and then gives AttentionSummary",
    "Device": "a protocol",
    "Edit": "an argument",
    "Family": "an adapter, part of a Model",
    "KeyValues": "tensors of the engine",
    "Packed": "tensors of the engine",
    "Parts": "keeps what is finished of an analysis in a folder",
    "Points": "an argument",
    "ProgressReporter": "is told, tells nothing",
    "PromptPair": "an argument",
    "ResultAxes": "an argument",
    "Settings": "an argument",
    "SweepState": "an enumeration",
    "SweepStore": "writes a folder, which open_results reads",
    "TaskSetting": "an argument",
    "TooFewWords": "an error",
    "Variant": "an argument",
}
"""Public classes that hold no result, and what they are. Every other one is `Displayed` or `Described`."""


@functools.cache
def public() -> dict[str, type]:
    """By name the classes that the public packages export, that their functions say they return, and the kinds of results."""
    found = {d.result.__name__: d.result for d in analyses.described()}
    for package in PACKAGES:
        module = importlib.import_module(f"pycotmech{package}")
        for name in module.__all__:
            it = getattr(module, name)
            if inspect.isclass(it):
                found |= {it.__name__: it} if it.__module__.startswith("pycotmech") else {}
            elif callable(it):
                found |= {c.__name__: c for c in returned(it)}
    return found | {c.__name__: c for c in kinds_of(found["Results"])}


def kinds_of(cls: type) -> list[type]:
    return [kind for sub in cls.__subclasses__() for kind in (sub, *kinds_of(sub))]


def returned(function) -> list[type]:
    """The package's classes in what a function says it returns."""
    annotation = str(getattr(inspect.unwrap(function), "__annotations__", {}).get("return", ""))
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    names = {n.id for n in ast.walk(ast.parse(annotation or "None", mode="eval")) if isinstance(n, ast.Name)}
    classes = [scope.get(name) for name in names]
    return [c for c in classes if inspect.isclass(c) and c.__module__.startswith("pycotmech")]


def test_every_public_class_shows_itself_or_is_no_result():
    found = public()
    assert {"Sweep", "AttentionSummary", "PatchSteps", "Suppression", "Plan", "Model", "Results", "Estimate"} <= set(found)
    silent = [n for n, c in found.items() if n not in NO_RESULTS and not issubclass(c, (Displayed, Described))]
    assert not silent, f"{silent}: derive from Displayed (arrays) or Described (facts), or say in NO_RESULTS why"
    assert not (gone := set(NO_RESULTS) - set(found)), gone


def test_every_result_says_what_it_shows_and_is_tried():
    analysis = public()["Analysis"]
    shown = {n: c for n, c in public().items() if issubclass(c, Displayed) and n not in BASES}
    for name, cls in shown.items():
        own = (cls.shown, analysis.shown) if issubclass(cls, analysis) else (cls.view, Displayed.view)
        assert own[0] is not own[1], f"{name} does not say what it shows"
        assert cls.to_xarray is not Displayed.to_xarray, f"{name} has no to_xarray"
    of_the_paper = {d.result.__name__ for d in analyses.described()}  # tried by running all of them
    tried = {name.split()[0] for name in MADE} | set(FOLDERS) | of_the_paper
    assert not (missing := set(shown) - tried), f"add an example of {missing} to tests/display/made.py"


def test_results_are_compared_by_identity():
    """Fields that are arrays have no single truth value: a comparison of all of them would be an error."""
    wrong = [n for n, c in public().items() if issubclass(c, Displayed) and c.__eq__ is not object.__eq__]
    assert not wrong, f"{wrong}: declare with @dataclass(eq=False)"
    assert len({*filter(lambda c: c.__hash__ is object.__hash__, public().values())}) > 20


class Page(HTMLParser):
    """Tags that were opened and closed, and what stands between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], set(), []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"style"}, attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def check_html(result) -> str:
    """What HTML is for: short, closed, without scripts. Returns its text."""
    text = result._repr_html_()
    page = Page(text)
    assert len(text) < 50_000
    assert page.tags <= {"div", "span", "table", "thead", "tbody", "tr", "th", "td", "code"}, page.tags
    assert "url(" not in text and "color:#" not in text.replace("background:#", "")  # the page's own colours, light or dark
    return "".join(page.words)


def check_displayed(result) -> None:
    """All of `Displayed`, against the arrays that it is made of."""
    line, view = repr(result), result.view()
    assert line.startswith(f"{type(result).__name__}(") and "\n" not in line and len(line) < 600
    words = check_html(result)
    strongest = view.strongest()
    if not isinstance(result, public()["Analysis"]):
        assert view.title[:40] in words or HOSTILE[:10] in view.title
        for index, value in strongest:
            assert view.place(index)[:100] in words and view.number(value) in words
    check_xarray(result)
    check_plotly(result, view)


def check_xarray(result) -> None:
    data = result.to_xarray()
    assert isinstance(data, xr.Dataset) and data.sizes and data.attrs["title"]
    again = xr.Dataset.from_dict(data.to_dict())
    xr.testing.assert_equal(again, data)
    json.dumps({k: v for k, v in data.attrs.items()}, default=float)  # plain values, which every format can keep


def check_plotly(result, view: View) -> None:
    figure = result.to_plotly()
    panels = view.panels()
    assert len(figure.data) == len(panels) and sum(trace.visible is True for trace in figure.data) == 1
    for trace, panel in zip(figure.data, panels, strict=True):
        drawn = np.asarray(trace.z if view.drawn[0] else trace.y, dtype=float)
        np.testing.assert_array_equal(drawn, panel.of(view.values).astype(float))
        names = np.asarray(trace.text if view.drawn[0] else trace.hovertext)
        for where in ((0,) * names.ndim, tuple(n - 1 for n in names.shape)):
            assert names[where] and "<" not in names[where]
        if view.drawn[0] and not view.share:
            assert trace.zmid == 0 and trace.zmin == -trace.zmax == -view.limit
        if view.floor is not None:
            assert f"noise floor {view.floor:.2g}" in trace.hovertemplate
    text = figure.to_json()
    assert "<script" not in text and "<img" not in text and "\\u003cscript" not in text and "$x$" not in text
    assert result.to_plotly(title="A title").layout.title.text.startswith("A title")


def check_rows(frame, data: xr.DataArray) -> None:
    """A table holds every number of the array at its place. An array on fewer axes than others is repeated."""
    dims = [str(d) for d in data.dims]
    rows = frame[frame[dims].notna().all(axis=1) & frame[data.name].notna()].drop_duplicates([*dims, data.name])
    assert not rows.duplicated(dims).any()
    found = rows.set_index(dims)[data.name]
    expected = data.to_series() if dims else data
    expected = expected[expected.notna()]
    assert len(found) >= len(expected)
    np.testing.assert_array_equal(found.reindex(expected.index).to_numpy(float), expected.to_numpy(float))


COLUMNS = {
    "Sweep": "effect",
    "Attribution": "effect",
    "AttentionSummary": "entropy",
    "HeadScores": "induction",
    "HeadSet": "mask",
    "DecisionHeads": "gain",
    "CopyHeads": "copying",
    "AttentionBySource": "mass",
    "MlpShare": "kl",
    "SentenceAttention": "attention",
    "Suppression": "kl",
    "EarlyAnswers": "probability",
    "HeadInfluence": "influence",
    "AnswerPaths": "contribution",
}
"""A variable whose table has a column of its name, with the axes as columns."""


@functools.cache
def made(name: str):
    return MADE[name]()


@pytest.mark.parametrize("name", MADE)
def test_a_result_shows_itself(name):
    result = made(name)
    assert type(result).__name__ == name.split()[0]
    check_displayed(result)
    frame = result.to_dataframe()
    assert len(frame) and not any(str(c).startswith("Unnamed") for c in frame)
    if column := COLUMNS.get(type(result).__name__):
        data = result.to_xarray()
        frame = frame.rename(columns={"position": "row"}) if name.startswith("Attention") and "row" in data.sizes else frame
        check_rows(frame, data[column])


def test_tables_of_paths_variants_and_pairs_hold_the_arrays():
    paths = made("PathSweep")
    data, frame = paths.to_xarray(), paths.to_dataframe()
    for row in frame.itertuples():
        at = {"input": row.input, "sender": f"L{row.sender_layer}H{row.sender_head}"}
        at["receiver"] = f"L{row.receiver_layer}H{row.receiver_head}"
        assert float(data["effect"].sel(at)) == row.effect
    assert len(frame) == int((data["sender_layer"] < data["receiver_layer"]).sum()) * data.sizes["input"]
    cut = made("Ablation")
    np.testing.assert_array_equal(cut.to_dataframe()["effect"], cut.to_xarray()["effect"])
    assert cut.to_xarray()["head"].values.tolist() == cut.to_dataframe()["head"].tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_array_equal(cut.view().values, cut.effect.reshape(2, 4))
    both = made("HeadInteractions")
    row = both.to_dataframe().iloc[1]
    assert float(both.to_xarray()["interaction"].sel(unit=row["a"], other=row["b"])) == row["interaction"]


def test_units_and_how_it_was_made_are_in_the_dataset():
    data = made("Sweep").to_xarray()
    assert data["effect"].attrs["units"] == "share of clean - corrupted" and data["raw"].attrs["units"] == "nat"
    assert data.attrs["model"] == HOSTILE and data.attrs["noise_floor"] == made("Sweep").noise_floor
    controlled = made("Sweep with controls").to_xarray()
    assert controlled["raw"].dims == ("example", "layer", "head") and controlled["control"].dims == ("layer", "head")
    place = made("Sweep by position").to_xarray()["token"]
    assert place.dims == ("position",) and place.values[0] == HOSTILE
    text = made("LogitLens of positions").to_xarray()["text"]  # a model without a tokenizer: the numbers of its tokens
    assert text.sel(position=5).item() == str(int(pair()[0][5]))


def test_hover_says_which_head_and_token():
    figure = made("Sweep").to_plotly()
    assert figure.data[0].text[1][3] == "L1H3" and figure.layout.title.text.startswith("z of the clean run patched")
    figure = made("Sweep by position").to_plotly()
    view = made("Sweep by position").view()
    layer, position = 1, 7
    head = int(np.abs(view.values[layer, position]).argmax())
    assert (
        figure.data[0].text[layer][position].startswith(f"L1H{head}, position 7 ") and "&lt;script" in figure.data[0].text[1][7]
    )
    assert figure.data[0].z[layer][position] == view.values[layer, position, head]


def test_values_below_the_noise_floor_are_marked():
    weak = dataclasses.replace(made("Sweep"), noise_floor=1e9)
    assert check_html(weak).count("below the noise floor") == len(weak.view().strongest())
    assert "below the noise floor" not in check_html(dataclasses.replace(weak, noise_floor=0.0))


@pytest.mark.parametrize("name", ["Attribution", "VariantSweep", "HeadSet"])
def test_figures_of_what_had_none(name, tmp_path):
    figure = made(name).plot(path=tmp_path / "x.png", title="A title")
    assert (tmp_path / "x.png").stat().st_size > 5000 and figure.axes and figure.get_suptitle() == "A title"
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"  # notebooks show it without pyplot


def test_a_table_that_would_be_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("pycotmech.files.long_table.MOST_ROWS", 10)
    with pytest.raises(ValueError, match="variables: the table of gain has 64 rows; expected at most 10"):
        made("DecisionHeads").to_dataframe(["gain"])
    with pytest.raises(ValueError, match="variables: got 'x'; expected some of"):
        made("DecisionHeads").to_dataframe(["x"])
    monkeypatch.setattr("pycotmech.display.interactive.MOST_CELLS", 7)
    with pytest.raises(ValueError, match="to_plotly: 8 cells are too many"):
        made("Sweep").to_plotly()


def described() -> list[str]:
    return [n for n, c in public().items() if issubclass(c, Described) and not issubclass(c, Displayed)]


def test_models_plans_and_examples_show_their_facts():
    from rich.console import Console

    names = {*described(), *DESCRIBED}
    assert {"Model", "Plan", "Estimate", "Status", "Trace", "PaperEstimate", "RunOutcome"} <= names
    for name in names:
        it = DESCRIBED[name]() if name in DESCRIBED else filled(public()[name])
        assert type(it).__name__ == name
        facts = it.described()
        words = check_html(it)
        assert facts.title[:60].splitlines()[0] in words, name
        console = Console(file=io.StringIO(), width=200)
        console.print(it)
        assert re.sub(r"\s", "", facts.title)[:20] in re.sub(r"\s", "", console.file.getvalue()), name


def test_a_model_says_its_sizes():
    words = check_html(DESCRIBED["Model"]())
    for part in ("family", "layers2", "d_head16", "dtypefloat32", "devicecpu", "weights"):
        assert part in words, part


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_shows_itself(kind, tmp_path):
    FOLDERS[kind](tmp_path / "out")
    results = pcm.open_results(tmp_path / "out")
    assert type(results).__name__ == kind
    for name in results.names:
        view = results.view(name)
        figure = results.to_plotly(name, title="A title")
        drawn = figure.data[0].z if view.drawn[0] else figure.data[0].y
        np.testing.assert_array_equal(np.asarray(drawn, float), view.panels()[0].of(view.values))
        xr.testing.assert_identical(results.to_xarray(name), results[name])
        assert len(results.to_dataframe(name))
    words = check_html(results)
    assert results.names[0] in words and repr(results).startswith(kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", [d.name for d in analyses.described() if d.name != "relation_heads"])
def test_every_analysis_of_the_paper_shows_itself(name):
    result = analysed(name)
    check_displayed(result)
    assert len(result.to_dataframe()) and result.plot().axes


@functools.cache
def analysed(name: str):
    from pycotmech.cot.tools.registry import Given

    model, examples, right = task()
    entry = next(d for d in analyses.described() if d.name == name)
    given = Given(model, examples, right, (2, 5), 0, None, {need: analysed(need) for need in entry.needs})
    return entry.run(given)

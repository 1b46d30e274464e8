"""One result of every public class, as small as they come, with a name that would be markup."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pycotmech as pcm
from pycotmech import paper
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.files.arrays import save_arrays
from pycotmech.paper.plan import CostPlan, Line
from pycotmech.runs.attention import STORE
from pycotmech.runs.status import Status
from pycotmech.runs.trace_run import TraceOutcome, TracePlan
from tests.reference.tiny import tiny_llama
from tests.report.made import run_folder
from tests.traces.cases import random_trace

HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">$x$'
"""Would end a cell, run a script, load an image, and be a formula."""


@functools.cache
def model() -> pcm.Model:
    return pcm.Model(tiny_llama(n_layers=2), name=HOSTILE)


@functools.cache
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.arange(3, 15)
    corrupted = clean.clone()
    corrupted[6] += 20
    return clean, corrupted


@functools.cache
def trace() -> pcm.traces.Trace:
    return dataclasses.replace(random_trace(model(), (3, 4, 2, 5, 3, 4)), name=HOSTILE, text=HOSTILE)


def two_traces() -> list[pcm.traces.Trace]:
    return [trace(), random_trace(model(), (4, 3, 3, 2, 5), seed=1)]


@functools.cache
def sweep(**options: Any) -> Any:
    return pcm.patch_heads(model(), *pair(), **options)


def by_position() -> Any:
    return dataclasses.replace(sweep(by_position=True), token_texts=(HOSTILE,) * len(pair()[0]))


def controlled() -> Any:
    clean, corrupted = pair()
    return pcm.patch_heads(model(), [clean, clean + 1], [corrupted, corrupted + 1], controls="all")


def ablation() -> Any:
    heads = [(l, h) for l in range(2) for h in range(4)]
    return pcm.ablate_heads(model(), pair()[0], heads=heads, kind="zero", each=True)


def variants() -> Any:
    z = model().run(pair()[0], capture=("z",))["z"]
    edits = [pcm.Variant((pcm.Edit("z", 0, h, [4], 0 * z[0, 4:5, h]),), name=f"{HOSTILE} {h}") for h in range(3)]
    return pcm.sweep(model(), pair()[0], edits)


def head_logits() -> Any:
    found = pcm.head_logits(model(), pair()[0], answer=5, wrong=7)
    return dataclasses.replace(found, labels=(HOSTILE, "wrong"))


def lens(**options: Any) -> Any:
    found = pcm.logit_lens(model(), pair()[0], answer=5, **options)
    return dataclasses.replace(found, labels=(HOSTILE,) * len(found.labels))


def summary(**options: Any) -> Any:
    segments = {HOSTILE: slice(1, 5), "rest": slice(5, 12)}
    return pcm.attention_summary(model(), pair()[0], segments=segments, **options)


@functools.cache
def task() -> tuple[pcm.Model, Any, torch.Tensor]:
    tiny = pcm.Model.from_pretrained("tiny-cot", check=False)
    examples = pcm.cot.make_examples(2, hops=1, shots=0, tokenizer=tiny.tokenizer)
    return tiny, examples, torch.ones(2, examples.n_steps, dtype=torch.bool)


def of_task(function: str, **options: Any) -> Any:
    """An analysis of one step of two examples, by a model that calls itself something else."""
    tiny, examples, right = task()
    found = getattr(pcm.cot, function)(tiny, examples, right=right, steps=(5,), **options)
    return dataclasses.replace(found, about={**found.about, "model": HOSTILE, "definition": HOSTILE})


def graded() -> Any:
    return pcm.cot.Graded(torch.tensor([[True, False], [True, True]]), None, "clean", ("decision", "copying"))


def of_traces(function: str, **options: Any) -> Any:
    return getattr(pcm.traces, function)(model(), trace(), **options)


MADE: dict[str, Callable[[], Any]] = {
    "Sweep": sweep,
    "Sweep by position": by_position,
    "Sweep with controls": controlled,
    "Sweep of layers": lambda: pcm.patch_residual(model(), *pair(), by_position=False),
    "Attribution": lambda: pcm.attribute_heads(model(), *pair()),
    "PathSweep": lambda: pcm.path_patch(model(), *pair(), receivers=[(1, 0), (1, 3)]),
    "PathSweep to the logits": lambda: pcm.path_patch(model(), *pair(), receivers="logits"),
    "HeadInteractions": lambda: pcm.head_interactions(model(), *pair(), [(0, 0), (0, 1), (1, 2)], metric="kl"),
    "VariantSweep": variants,
    "Ablation": ablation,
    "Ablation of one set": lambda: pcm.ablate_heads(model(), pair()[0], heads=[(0, 1), (1, 2)], kind="zero"),
    "Knockout": lambda: pcm.knock_out_edges(model(), pair()[0], from_=[2, 3], to=[11], each="head"),
    "AttentionSummary": summary,
    "AttentionSummary of one row": lambda: pcm.attention_summary(model(), pair()[0], rows=[-1], segments={}),
    "HeadScores": lambda: pcm.head_scores(model(), torch.cat([pair()[0], pair()[0]])),
    "HeadLogits": head_logits,
    "LogitLens": lens,
    "LogitLens of positions": lambda: lens(positions=[3, 5, 11]),
    "Graded": graded,
    "HeadSet": lambda: pcm.cot.HeadSet.of([(1, 2), (0, 0)], (2, 4), name=HOSTILE),
    "Selection": lambda: pcm.cot.select_heads(np.arange(8.0).reshape(2, 4), k=[1, 3], name=HOSTILE),
    "DecisionHeads": lambda: of_task("decision_heads"),
    "CopyHeads": lambda: of_task("copy_heads"),
    "AttentionBySource": lambda: of_task("attention_by_source"),
    "MlpShare": lambda: of_task("mlp_share"),
    "SentenceAttention": lambda: of_traces("sentence_attention"),
    "Suppression": lambda: of_traces("suppress"),
    "EarlyAnswers": lambda: of_traces("early_answers"),
    "HeadInfluence": lambda: of_traces("head_influence", source=1),
    "AnswerPaths": lambda: of_traces("answer_paths"),
    "ReceiverHeads": lambda: pcm.traces.receiver_heads(model(), two_traces(), proximity=1, draws=20),
    "ChainUse": lambda: pcm.traces.is_chain_used(model(), two_traces(), shuffles=1),
}
"""By the name of the class and what is particular. The other analyses are made by the test that runs all of them."""


def paper_folder(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for name in ("DecisionHeads", "MlpShare"):
        MADE[name]().save(folder / "data")


def trace_folder(folder: Path) -> None:
    (folder / "trace_000").mkdir(parents=True)
    MADE["ReceiverHeads"]().save(folder)
    MADE["EarlyAnswers"]().save(folder / "trace_000")


def attention_folder(folder: Path) -> None:
    folder.mkdir()
    data = MADE["AttentionSummary"]().to_xarray()
    save_arrays(data.assign_coords(segment=data["segment"].astype(str)), folder / STORE)


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "SweepResults": lambda folder: run_folder(folder, views=False),
    "PaperResults": paper_folder,
    "TraceResults": trace_folder,
    "AttentionResults": attention_folder,
}
"""By the kind of results: writes such a folder."""


def filled(cls: type) -> Any:
    """An object of a dataclass with a value of each field's type."""
    values: dict[str, Any] = {
        "str": HOSTILE, "int": 3, "float": 0.5, "bool": True, "Path": Path(HOSTILE), "dict": {}, "list": [HOSTILE],
        "tuple[int, int]": (0, 3), "tuple": (), "Mapping": {}, "Word": HOSTILE,
    }  # fmt: skip
    given = {}
    for field in dataclasses.fields(cls):
        kind = str(field.type)
        found = next((v for name, v in values.items() if kind.startswith(name)), None)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            given[field.name] = found
    return cls(**given)


def layers() -> Any:
    return pcm.cost.Measured(HOSTILE, model().cfg, ((1, 0.1), (2, 0.2)), 1e9, 1e9, 1e-3, 1e-3, 1e9, 1e9)


def cost_plan() -> Any:
    line = Line(HOSTILE, "E1", Cost(), Cost(), 1.0)
    return CostPlan((line,), 1e9, filled(Workload), HOSTILE)


def agreement() -> Any:
    return MADE["Attribution"]().agreement(sweep())


DESCRIBED: dict[str, Callable[[], Any]] = {
    "Model": model,
    "ModelConfig": lambda: model().cfg,
    "Prefixes": lambda: model().prefixes,
    "Activations": lambda: model().run(pair()[0], capture=("z",)),
    "Plan": lambda: sweep().plan,
    "Controls": lambda: controlled().controls,
    "Agreement": agreement,
    "PairReport": lambda: pcm.check_pair(*pair(), model=model()),
    "Demand": lambda: pcm.cost.heads(model().family, tokens=20, suffix=4),
    "DataSheet": lambda: pcm.cost.DEVICES["h100"],
    "Measured": layers,
    "Examples": lambda: task()[1],
    "Example": lambda: task()[1][0],
    "Step": lambda: task()[1][0].steps[5],
    "HeadMeans": lambda: dataclasses.replace(pcm.cot.head_means(*task()[:2], n=1), source=HOSTILE),
    "Trace": trace,
    "Sentence": lambda: pcm.traces.Sentence(0, 3, HOSTILE, HOSTILE),
    "CostPlan": cost_plan,
    "Claim": lambda: paper.CLAIMS[0],
    "PaperOutcome": lambda: dataclasses.replace(filled(paper.PaperOutcome), plan=cost_plan(), verdicts=[]),
    "Status": lambda: filled(Status),
    "TracePlan": lambda: filled(TracePlan),
    "TraceOutcome": lambda: filled(TraceOutcome),
}
"""Others are filled field by field (`filled`)."""

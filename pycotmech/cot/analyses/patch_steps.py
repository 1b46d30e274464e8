"""What each head restores at each step when it alone takes its clean value (docs/protocol.md, E1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pycotmech._choices import check_choice
from pycotmech.cot.task.corruptions import Corruption, corrupted_prompt, require_consistent
from pycotmech.cot.task.examples import Examples, Step
from pycotmech.cot.task.steps import Graded
from pycotmech.cot.tools.by_head import HeadAnalysis
from pycotmech.cot.tools.cells import Cell, Cells, choose
from pycotmech.cot.tools.cost import Cost, Workload, forwards_cost, metered, rows_cost
from pycotmech.cot.tools.registry import Description
from pycotmech.cot.tools.result import Progress, labelled
from pycotmech.engine import planner
from pycotmech.engine.joins import N_JITTERED, N_SELF_PATCHES
from pycotmech.engine.metrics import ExampleMetric
from pycotmech.model.arguments import check_common
from pycotmech.model.config import ModelConfig
from pycotmech.model.run import KeyValues, forward_packed
from pycotmech.patching import Sweep, patch_heads_each
from pycotmech.patching.controls import CONTROL_SHARE, control_arguments, next_pairs
from pycotmech.patching.heads import Direction
from pycotmech.patching.pairs import aligned
from pycotmech.patching.sham import N_SHAM
from pycotmech.patching.shared_runs import shared_runs
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.stats.null_effects import ENOUGH, null_threshold

if TYPE_CHECKING:
    from pycotmech.model import Model

METRICS = ("kl", "logit_diff", "prob")


class PatchSteps(HeadAnalysis):
    """Restoration by head.

    data: for each metric m of kl, logit_diff, prob: `m` [example, step, layer, head], its value with that head patched;
    `m_clean`, `m_corrupted` [example, step]; `effect` is the change of the main metric from the base run on the scale
    corrupted 0, clean 1, against the mean of the self-patches; `noise_floor` [example, step] on the same scale; `changed`
    [example, step], whether the corruption changes the model's first choice. With controls also, on the scale of `effect`:
    `control`, the effect of the head with the next example's activations, NaN where it was not measured; `sham` [example,
    step], the largest effect before the first difference, which is 0.

    Where the corruption leaves the output as it is (KL divergence exactly 0) there is nothing to restore: `effect` and
    `noise_floor` are NaN, the cell counts in no restoration, and `findings` say how many there are.
    """

    name, title = "patch_steps", "What each head restores by itself"
    source = "E1"
    main, label = "effect", "share of KL divergence restored"
    ranges: ClassVar = {
        **dict.fromkeys(("kl", "kl_clean", "kl_corrupted", "noise_floor", "sham"), bootstrap.COUNT),
        **dict.fromkeys(("prob", "prob_clean", "prob_corrupted", "changed"), bootstrap.SHARE),
    }

    def restoration(self, metric: str = "kl") -> xr.Dataset:
        """The ratio of means over examples, with its bootstrap interval: mean, low, high, n [step, layer, head].

        metric: "kl", "logit_diff" or "prob"; (m - m_corrupted) / (m_clean - m_corrupted), each mean over examples first.
        Source: docs/protocol.md, E1.
        """
        check_choice("metric", metric, METRICS)
        patched = self.data[metric].where(~self._unchanged()).transpose("example", "step", "layer", "head")
        clean, corrupted = (self.data[f"{metric}_{run}"].values[..., None, None] for run in ("clean", "corrupted"))
        return labelled(bootstrap.ratio_interval(patched.values - corrupted, clean - corrupted), patched)

    def _unchanged(self) -> xr.DataArray:
        """Where the corruption leaves the output as it is, bool [example, step]."""
        return self.data["kl_corrupted"] == self.data["kl_clean"]

    def control(self) -> xr.DataArray:
        """What a head's share must exceed to be unlike the controls, by step: the size that 5 % at most of the controls exceed
        (`stats.null_effects.null_threshold`); NaN without controls.

        Effects and controls are single examples' changes in units of the mean divergence of the step. A mean over examples
        varies less than one of them, so the threshold is on the safe side for restorations.
        """
        null = self._controls().transpose("step", ...)
        at = [null_threshold(null.values[i]) for i in range(null.sizes["step"])]
        return xr.DataArray(at, {"step": self.data["step"]}, "step")

    def _controls(self) -> xr.DataArray:
        """The controls [example, step, layer, head] in units of the mean divergence of each step; NaN where there is none."""
        if "control" not in self.data:
            return xr.full_like(self.data["effect"], np.nan)
        span = abs(self.data["kl_corrupted"] - self.data["kl_clean"])
        return self.data["control"] * span / span.where(span > 0).mean("example")

    def _beside(self, step: int, heads: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Noise floor, control, the mean of the head's own controls (NaN where there is none), and whether the restoration is
        beyond floor and control."""
        floor = float(self.data["noise_floor"].sel(step=step).max())
        control, mean = float(self.control().sel(step=step)), self.scores()["mean"].sel(step=step)
        own = self._controls().sel(step=step).transpose("example", "layer", "head")
        averages = nanmean(own.values)
        return [
            {"floor": floor, "control": control, "head_control": float(averages[l, h])}
            | {"beyond": bool(abs(float(mean.sel(layer=l, head=h))) > np.fmax(floor, control))}
            for l, h in heads
        ]

    def _limits(self) -> list[str]:
        floor = self.data["noise_floor"].max("example")
        words = (
            f"noise floor, of the example where it is largest: {float(floor.min()):.1g} to {float(floor.max()):.1g}, by step"
        )
        control = self.control()
        if bool(control.notnull().any()):
            words += f"; control: {float(control.min()):.2g} to {float(control.max()):.2g}, by step"
        return [words]

    def scores(self, variable: str | None = None) -> xr.Dataset:
        """`restoration` of the KL divergence; for a variable its plain mean over examples."""
        found = self.restoration() if variable is None else super().scores(variable)
        if variable is None and self.about["settings"]["direction"] == "noise":  # from the base, which is the clean run
            flipped = xr.Dataset({"mean": 1 - found["mean"], "low": 1 - found["high"], "high": 1 - found["low"]})
            found = flipped.assign(n=found["n"])
        return found

    def findings(self) -> list[str]:
        """For each step the strongest head; how many heads are clearly above the noise floor."""
        found = self.scores()
        floor = self.data["noise_floor"].max("example")
        clear = ((found["low"] > floor) | (found["high"] < -floor)).sum(("layer", "head"))
        lines = self._strongest()
        known = found["low"].notnull().any(("layer", "head")).values
        size = self.data.sizes["layer"] * self.data.sizes["head"]
        if known.any():
            counted = [f"{int(step)}: {int(n)}" for step, n in zip(clear["step"].values[known], clear.values[known])]
            lines.append(
                f"heads whose interval exceeds the noise floor, of {size}, by step: {', '.join(counted)} (of {size} heads "
                f"without an effect about {math.ceil(size / 20)}, one in 20, may lie there by chance, more if they are skewed)"
            )
        lines += self._beyond_control(found, floor, known)
        alone = [str(step) for step, n in zip(found["step"].values, found["n"].max(("layer", "head")).values) if n == 1]
        if alone:
            at = f"step{'s' if len(alone) > 1 else ''} {', '.join(alone)}"
            lines.append(f"{at}: one example has no interval, so no head can be called clear of the noise")
        unchanged = int(self._unchanged().sum())
        if unchanged:
            lines.append(
                f"in {unchanged} of {self.about['cells']} cells the corrupted run's output is the clean run's, so there is "
                "nothing to restore; they do not count"
            )
        return lines

    def _beyond_control(self, found: xr.Dataset, floor: xr.DataArray, known: np.ndarray) -> list[str]:
        """How many heads lie beyond floor and control, in words; nothing without controls."""
        control = self.control()
        known = known & control.notnull().values
        if not known.any():
            return []
        needed, size = np.fmax(floor, control), self.data.sizes["layer"] * self.data.sizes["head"]
        counts = ((found["low"] > needed) | (found["high"] < -needed)).sum(("layer", "head")).values[known]
        at = [f"{int(step)}: {int(n)}" for step, n in zip(found["step"].values[known], counts)]
        low, high = float(control.values[known].min()), float(control.values[known].max())
        measured = self.data["control"].notnull().sum(("example", "layer", "head")).values[known]
        number, fewest = int(measured.sum()), int(measured.min())
        share = "95 % of " if fewest >= ENOUGH else ""
        few = f"; a step with {fewest} of them says little" if fewest < ENOUGH else ""
        return [
            f"heads whose interval exceeds floor and control, of {size}, by step: {', '.join(at)} (control: with the next "
            f"example's activations {share}{number} heads and examples change at most {low:.2g} to {high:.2g}{few})"
        ]


def patch_steps(
    model: Model,
    examples: Examples,
    *,
    steps: Sequence[int] | None = None,
    right: Graded | Tensor | None = None,
    direction: Direction = "denoise",
    site: str = "z",
    positions: Sequence[int] | None = None,
    corruption: Corruption = "answer",
    controls: bool = True,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: Progress | None = None,
) -> PatchSteps:
    """Patches every head of every layer by itself at every step that counts, exactly, and measures all three metrics.

    steps, right: as `cells.choose`. direction, site, positions: as `pcm.patch_heads`; the default is the paper's: clean z
    into the corrupted run, at all positions. All heads that the site has.
    corruption: "answer": the step's counterfactual (E1; E2's third kind at inductive steps). "premise", "rule": E2's other
        two, at inductive steps only (the default then): the concept is replaced in the premise, or in the rule, alone;
        `wrong` is then the word that the corrupted run likes best apart from the answer, which may still be its first choice
        (`changed` says whether it is not). Both need examples of definition="exact".
    controls: measure the random control of 6 % of the heads of each cell, drawn evenly over the layers, with the activations of
        the next example at the same step, and the sham position (`pcm.patch_heads`). For site z.
    Returns `PatchSteps`; per-example values of KL(P_clean || P), the logit difference and the answer's probability. A cell
        whose corruption changes nothing is not an error: it has nothing to restore and counts in no restoration.
    Raises TypeError or ValueError naming the argument, before the first sweep.
    Cost: one sweep (see `pcm.patch_heads`), of which controls are about a tenth, for all steps of an example that have the same
        word replaced, at the last of them; with explicit positions one per cell. The logits of one sweep's patched runs are
        held, L H V numbers for each step.
    Source: docs/protocol.md, E1, and E2 for steps of kind "induction".
    """
    check_common(model, seed=seed, memory_gb=memory_gb)
    check_choice("corruption", corruption, get_args(Corruption))
    if corruption != "answer" and isinstance(examples, Examples):
        require_consistent(examples, f"corruption {corruption!r}")
    if corruption != "answer" and model.tokenizer is None:
        raise ValueError(f"corruption: {corruption!r} finds its words in the text; {model.name} has no tokenizer")
    if corruption != "answer" and steps is None:
        steps = [i for i, kind in enumerate(examples.kinds) if kind == "induction"]
    cells = choose(model, examples, steps=steps, right=right)
    todo = list(cells)
    prompts = [corrupted_prompt(cell.example, cell.step, corruption, model.tokenizer) for cell in todo]
    options = dict(direction=direction, site=site, positions=positions, seed=seed, memory_gb=memory_gb)
    others = _others(cells, direction) if controls and site == "z" else None
    found: dict[str, np.ndarray] = {}
    done = 0
    with metered(model) as meter:
        shared = examples.shared_ids
        past = model.prefixes.key_values(shared, planner.memory_budget(memory_gb, *model.family.devices))
        for together in _together(cells, prompts):
            if progress is not None:
                progress(done, len(todo))
            swept = [(todo[i], prompts[i]) for i in together]
            ends = _ends(model, swept, len(shared), past)
            wrong = [
                cell.step.wrong if corruption == "answer" else _runner_up(end[1], cell.step.answer)
                for (cell, _), end in zip(swept, ends, strict=True)
            ]
            given = {} if others is None else control_arguments([others[i] for i in together])
            for (cell, _), measured in zip(swept, _sweeps(model, swept, wrong, ends, **options, **given), strict=True):
                for name, value in measured.items():
                    found.setdefault(name, cells.empty(*np.shape(value)))[cell.e, cell.s] = value
            done += len(together)
    if progress is not None:
        progress(len(todo), len(todo))
    n_layers, n_heads = found["kl"].shape[2:]
    where = "at all positions" if positions is None else f"at positions {list(positions)}"
    into = "clean values into the corrupted run" if direction == "denoise" else "corrupted values into the clean run"
    words = f"{site} of one head at a time, {into}, {where}; restoration is the ratio of means over examples"
    words += "" if corruption == "answer" else f"; corrupted in the {corruption} alone"
    settings = {"direction": direction, "site": site, "positions": positions, "corruption": corruption, "seed": seed}
    settings["controls"] = others is not None
    axes, source = {"layer": n_layers, "head": n_heads}, "E1" if corruption == "answer" else "E2"
    return PatchSteps.made(model, cells, found, axes, words, settings, meter, source=source)


def _runner_up(logits: Tensor, answer: int) -> int:
    """The likeliest token other than the answer."""
    return next(t for t in logits.topk(2).indices.tolist() if t != answer)


def _others(cells: Cells, direction: str) -> list[Tensor | None]:
    """Of each cell the next example's prompt at the same step, from which its random control takes activations."""
    found: dict[tuple[int, int], Tensor | None] = {}
    for s, step in enumerate(cells.steps):
        pairs = [aligned(example.steps[step].clean, example.steps[step].corrupted) for example in cells.examples]
        found |= {(e, s): other for e, other in enumerate(next_pairs(pairs, direction))}
    return [found[cell.e, cell.s] for cell in cells]


def _together(cells: Cells, prompts: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of cells that are swept together: of one example, with prompts that begin one another."""
    pairs = [aligned(cell.step.clean, prompt) for cell, prompt in zip(cells, prompts, strict=True)]
    out, first = [], 0
    for group in cells.by_example().values():
        runs = shared_runs(pairs[first : first + len(group)])
        out += [[first + r for r in run.readers] for run in runs]
        first += len(group)
    return out


def _sweeps(
    model: Model,
    swept: Sequence[tuple[Cell, Tensor]],
    wrong: Sequence[int],
    ends: Tensor,
    **options: Any,
) -> list[dict[str, Any]]:
    """All metrics of each cell's sweep. swept: cells and their corrupted prompts. ends [n, 2, V]: logits of each cell's clean
    and corrupted run."""
    steps = [cell.step for cell, _ in swept]
    sweeps = patch_heads_each(
        model,
        [step.clean for step in steps],
        [corrupted for _, corrupted in swept],
        metric="kl",
        answer=[step.answer for step in steps],
        wrong=list(wrong),
        return_logits=True,
        normalize=False,
        **options,
    )
    return [_measured(*parts) for parts in zip(sweeps, steps, wrong, ends, strict=True)]


def _measured(sweep: Sweep, step: Step, wrong: int, ends: Tensor) -> dict[str, Any]:
    assert sweep.logits is not None
    # The KL is the sweep's own: taken from its own clean run, so that identical runs give exactly 0.
    span = float(sweep.clean_metric[0] - sweep.corrupted_metric[0])  # from the corrupted to the clean run
    scale = np.nan if span == 0 else (1.0 if sweep.direction == "denoise" else -1.0) / span
    out: dict[str, Any] = {"effect": sweep.effect * scale, "noise_floor": sweep.noise_floor * abs(scale), "kl": sweep.raw}
    if sweep.controls is not None:
        out["control"], out["sham"] = sweep.control * scale, sweep.sham * abs(scale)
    out["kl_clean"], out["kl_corrupted"] = float(sweep.clean_metric[0]), float(sweep.corrupted_metric[0])
    for name in METRICS[1:]:
        measure = ExampleMetric(name, ends[0], step.answer, wrong)
        grid = torch.stack([measure(layer) for layer in sweep.logits])
        out[name] = grid.numpy()
        out[f"{name}_clean"], out[f"{name}_corrupted"] = measure(ends).tolist()
    out["changed"] = float(int(ends[1].argmax()) != step.answer)
    return out


def induction_score(results: Sequence[PatchSteps]) -> xr.DataArray:
    """The share of the KL divergence of all kinds of corruption together that a head restores: [example, step, layer, head].

    Kinds are weighted by their divergence, so that one that breaks next to nothing weighs next to nothing. NaN where one of
    them does not count, or none changes anything. results: of `patch_steps` on the same examples and steps. Source:
    docs/protocol.md, E2.
    """
    if not results or len({r.about["settings"]["corruption"] for r in results}) < len(results):
        raise ValueError("results: expected results of different corruptions, at least one")
    kinds = xr.DataArray([r.about["settings"]["corruption"] for r in results], dims="corruption")
    effect, broken = (xr.concat([r.data[name] for r in results], kinds) for name in ("effect", "kl_corrupted"))
    restored = (effect * broken).where(broken != 0, 0.0).sum("corruption", skipna=False)
    total = broken.sum("corruption", skipna=False)
    return (restored / total.where(total > 0)).transpose(*results[0].data["effect"].dims)


def _ends(model: Model, swept: Sequence[tuple[Cell, Tensor]], shared: int, past: KeyValues | None) -> Tensor:
    """Logits [n, 2, V] after the last token of each cell's clean and corrupted prompt, which the last cell's begin with."""
    (host, corrupted), n = swept[-1], len(swept[-1][1]) - shared
    at = torch.tensor([len(prompt) - 1 - shared for _, prompt in swept])
    suffixes = [host.step.clean[shared:], corrupted[shared:]]
    packed = forward_packed(model.family, suffixes, past, read=torch.cat((at, n + at)))
    with torch.no_grad():
        return model.family.logits(packed.resid_final).cpu().unflatten(0, (2, -1)).transpose(0, 1)


def cost(cfg: ModelConfig, workload: Workload, *, controls: bool = True) -> Cost:
    """Predicted: the pairs' runs, and S rows of each of L H variants and of the self-patches through the layers above (of the
    jittered copies through all layers), for each sweep. controls: also the random controls and the run of another prompt, and
    the sham position's variants and run."""
    heads, L = cfg.n_layers * cfg.n_heads, cfg.n_layers
    variants = heads + (math.ceil(CONTROL_SHARE * heads) + N_SHAM) * controls
    swept = workload.swept or workload.cells * workload.suffix
    rows = (variants + N_SELF_PATCHES + 2 * N_JITTERED) * (swept * (L - 1) / 2 + workload.cells) / L
    own = workload.length - workload.shared
    # The pair, its beginning again for what its metrics are taken from, and the runs of the controls.
    once = (2 + 2 * controls) * own + (2 * own + workload.shared) * (L - 1) / L
    sweeps = workload.sweeps or workload.cells
    held = 4.0 * variants * cfg.d_vocab * (workload.together or 1)
    cells = workload.cells
    return rows_cost(cfg, rows + sweeps * once, forwards=cells * (heads + 2), read=cells * (variants + 4), memory=held)


def authors_cost(cfg: ModelConfig, workload: Workload) -> Cost:
    """Theirs: one full forward per head, and the two runs (docs/protocol.md, Cost, E1)."""
    return forwards_cost(cfg, workload, workload.cells * (cfg.n_layers * cfg.n_heads + 2))


ANALYSIS = Description(PatchSteps, patch_steps, cost=cost, authors=authors_cost)

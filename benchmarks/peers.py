"""One way of patching heads one at a time, run in a process of its own: what the sweep costs that way, and what it finds.

    python -m benchmarks.peers nnsight --dtype float32 --threads 1 --heads 0.3 15.2 29.8

Every way gets the same weights, prompts, dtype and threads, patches z of one head at all positions, and reads the logit
difference at the last position. Only the heads named are run, and the cost of the sweep follows from them: the mean over the
heads times their number, or, where the cost depends on the layer, the sum over all layers of what lies between the layers
run. What is needed once (both runs of the prompts, activations kept) is counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pycotmech as pcm
from benchmarks.by_hand import cache_of, cached_forward, hooked_forward, logit_difference, prompt_pair
from tests.reference.truth import hooked, z_of

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Measured:
    """seconds, cpu: wall and processor time of the whole sweep, all heads. ran: how many heads were run for that.
    values: {"layer.head": logit difference of the patched run}. tokens, suffix: of the prompts."""

    seconds: float
    cpu: float
    ran: int
    values: dict[str, float]
    tokens: int
    suffix: int


def clock() -> np.ndarray:
    """Wall and processor time: on a busy machine only the second means something."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(call: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a call returns, and its times. It runs once; `bench_peers` starts several processes in turn."""
    start = clock()
    found = call()
    return found, clock() - start


def measure(kind: str, *, dtype: str, threads: int, heads: list[str], timeout: float = 3600) -> Measured:
    """Runs a kind in a fresh process. RuntimeError holds its error output."""
    options = ["--dtype", dtype, "--threads", str(threads), "--heads", *heads]
    command = [sys.executable, "-m", "benchmarks.peers", kind, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


class Task:
    """The prompts, the model, the heads asked for; `values` is filled in by the kinds."""

    def __init__(self, dtype: str, heads: list[tuple[int, int]]) -> None:
        self.model = pcm.Model.from_pretrained(MODEL, dtype=dtype)
        self.hf, self.cfg = self.model.hf, self.model.cfg
        self.clean, self.corrupted, self.answer, self.wrong = prompt_pair(self.model.tokenizer)
        self.first = int((self.clean != self.corrupted).nonzero()[0])
        self.heads = heads
        self.values: dict[str, float] = {}

    def found(self, l: int, h: int, logits: Tensor) -> None:
        self.values[f"{l}.{h}"] = logit_difference(logits, self.answer, self.wrong)

    def all_heads(self, times: list[np.ndarray]) -> np.ndarray:
        return np.mean(times, 0) * self.cfg.n_layers * self.cfg.n_heads

    def one_by_one(self, patch: Callable[[int, int], Tensor]) -> np.ndarray:
        """Times of all heads, where patch(layer, head) gives the last position's logits. The first call is not timed."""
        patch(*self.heads[-1])
        times = []
        for l, h in self.heads:
            logits, seconds = timed(lambda l=l, h=h: patch(l, h))
            self.found(l, h, logits)
            times.append(seconds)
        return self.all_heads(times)

    def clean_z(self) -> tuple[list[Tensor], np.ndarray]:
        z_of(self.hf, self.clean)  # the first forward is not timed
        return timed(lambda: z_of(self.hf, self.clean))


def ours(task: Task) -> np.ndarray:
    """Cold: the shared prefix is run in every sweep, as the others run theirs."""

    def sweep():
        task.model.prefixes.clear()
        return pcm.patch_heads(
            task.model, task.clean, task.corrupted, metric="logit_diff", answer=task.answer, wrong=task.wrong, normalize=False
        )

    sweep()  # buffers, and what is compiled or read at the first call
    result, seconds = timed(sweep)
    task.heads = [(l, h) for l in range(task.cfg.n_layers) for h in range(task.cfg.n_heads)]
    task.values = {f"{l}.{h}": float(result.raw[l, h]) for l, h in task.heads}
    return seconds


def truth(task: Task) -> np.ndarray:
    """Hooks again, the same weights widened to float32."""
    task.hf.float()
    z, _ = task.clean_z()
    return task.one_by_one(lambda l, h: hooked_forward(task.hf, task.corrupted, z, l, h))


def hooks(task: Task) -> np.ndarray:
    z, once = task.clean_z()
    return once + task.one_by_one(lambda l, h: hooked_forward(task.hf, task.corrupted, z, l, h))


def cached_hooks(task: Task) -> np.ndarray:
    z, once = task.clean_z()
    cache, seconds = timed(lambda: cache_of(task.hf, task.corrupted[: task.first]))
    return once + seconds + task.one_by_one(lambda l, h: cached_forward(task.hf, cache, task.corrupted, z, l, h, task.first))


def transformer_lens(task: Task) -> np.ndarray:
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = task.model.tokenizer
    with tempfile.TemporaryDirectory() as folder:  # it reads the configuration by name
        task.hf.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=task.hf, tokenizer=tokenizer, device="cpu", dtype=task.hf.dtype
        )
    names = [f"blocks.{l}.attn.hook_z" for l in range(task.cfg.n_layers)]
    with torch.no_grad():
        bridge.run_with_cache(task.clean[None], names_filter=names)  # the first forward is not timed
        (_, cache), once = timed(lambda: bridge.run_with_cache(task.clean[None], names_filter=names))
        rows = []

        def metric(logits):
            rows.append(logits[0, -1].clone())
            return rows[-1][0]

        def sweep():
            chosen = pd.DataFrame(task.heads, columns=["layer", "head"])
            patching.get_act_patch_attn_head_out_all_pos(
                bridge, task.corrupted[None], cache, metric, index_axis_names=None, index_df=chosen
            )

        _, times = timed(sweep)
    for (l, h), logits in zip(task.heads, rows):
        task.found(l, h, logits)
    return once + task.all_heads([times / len(task.heads)])


def nnsight(task: Task) -> np.ndarray:
    from nnsight import TransformersModel

    model = TransformersModel(task.hf, tokenizer=task.model.tokenizer)
    z, once = task.clean_z()
    D, base = task.cfg.d_head, task.corrupted

    @torch.no_grad()
    def patch(l: int, h: int) -> Tensor:
        with model.trace(base, use_cache=False, logits_to_keep=1):
            model.model.layers[l].self_attn.o_proj.input[:, :, h * D : (h + 1) * D] = z[l][:, h]
            logits = model.output.logits[0, -1].save()
        return logits

    return once + task.one_by_one(patch)


def nnsight_skip(task: Task) -> np.ndarray:
    """Per layer one trace with an invoke for each head; every invoke skips the blocks below with what they gave before."""
    import nnsight

    model = nnsight.TransformersModel(task.hf, tokenizer=task.model.tokenizer)
    z, once = task.clean_z()
    D, H, base = task.cfg.d_head, task.cfg.n_heads, task.corrupted

    @torch.no_grad()
    def block_outputs() -> list[Tensor]:
        found = []
        record = [b.register_forward_hook(lambda _m, _a, out: found.append(out)) for b in task.hf.model.layers]
        with hooked(*record):
            task.hf(base[None], use_cache=False, logits_to_keep=1)
        return found

    below, seconds = timed(block_outputs)
    once += seconds

    @torch.no_grad()
    def layer(l: int) -> list[Tensor]:
        with model.trace(use_cache=False, logits_to_keep=1) as tracer:
            rows = nnsight.save([])
            for h in range(H):
                with tracer.invoke(base):
                    for k in range(l):
                        model.model.layers[k].skip(below[k])
                    model.model.layers[l].self_attn.o_proj.input[:, :, h * D : (h + 1) * D] = z[l][:, h]
                    rows.append(model.output.logits[0, -1])
        return rows

    layers = sorted({l for l, _ in task.heads})[::2]  # each with all of its heads: the first, one between, the last
    layer(layers[-1])  # not timed: the layer that costs least
    times = []
    for l in layers:
        rows, seconds = timed(lambda l=l: layer(l))
        times.append(seconds)
        for h, logits in enumerate(rows):
            task.found(l, h, logits)
    return once + [np.interp(range(task.cfg.n_layers), layers, each).sum() for each in np.transpose(times)]


def pyvene(task: Task) -> np.ndarray:
    """The source's activations handed over, so that it does not run the source again for each head."""
    import pyvene as pv

    logging.disable(logging.WARNING)
    z, once = task.clean_z()
    inputs = {"input_ids": task.corrupted[None], "logits_to_keep": 1}
    everywhere = list(range(len(task.corrupted)))

    @torch.no_grad()
    def patch(l: int, h: int) -> Tensor:
        where = {"layer": l, "component": "head_attention_value_output", "unit": "h.pos"}
        model = pv.IntervenableModel({**where, "intervention_type": pv.VanillaIntervention}, model=task.hf)
        location = [[[[h]], [everywhere]]]
        (key,) = model.interventions
        _, out = model(
            inputs,
            source_representations={key: z[l][:, h][None, None]},
            unit_locations={"sources->base": (location, location)},
            use_cache=False,
        )
        return out.logits[0, -1]

    return once + task.one_by_one(patch)


KINDS = {f.__name__: f for f in (ours, truth, hooks, cached_hooks, transformer_lens, nnsight, nnsight_skip, pyvene)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", nargs="*", default=[], help="layer.head; ours runs all of them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = Task(args.dtype, [tuple(map(int, name.split("."))) for name in args.heads])
    with contextlib.redirect_stdout(io.StringIO()):  # the last line is for the process that started this one
        seconds, cpu = map(float, KINDS[args.kind](task))
    T = len(task.clean)
    found = Measured(seconds, cpu, len(task.values), task.values, T, T - task.first)
    print(json.dumps(vars(found)))


if __name__ == "__main__":
    main()

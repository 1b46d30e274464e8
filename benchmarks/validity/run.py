"""Claims on many models at once: one process for each core, each with one thread."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from benchmarks.validity import claims as claiming
from benchmarks.validity import models as drawing
from benchmarks.validity.judge import LARGE, NULLS, PLANTED
from benchmarks.validity.kept import Store
from benchmarks.validity.planted import PLANTINGS

LARGE_CLAIMS = ("abidance", "movers")
"""Claims that are also tried on random models of SmolLM2-135M's shape: those about what single heads write or look at, of
which a large model has many more."""
DRAWN = {NULLS: drawing.toy, LARGE: drawing.smollm2}

Job = tuple[str, str, int, tuple[str, ...], dict[str, Any]]
"""Part, name, number of the model, claims, settings."""


def jobs(part: str, n: int, names: Sequence[str] | None, settings: Mapping[str, Any], store: Store) -> list[Job]:
    """What is still to be done of a part: for each model the claims that it has no verdict of.

    part: NULLS or LARGE, of n models; PLANTED: the models of PLANTINGS. names: of claims; None: all that belong to the part.
    """
    asked = [claim.name for claim in claiming.named(names)]
    if part == PLANTED:
        todo = [(p.name, i, (p.claim,)) for i, p in enumerate(PLANTINGS) if p.claim in asked]
    else:
        here = tuple(name for name in asked if part == NULLS or name in LARGE_CLAIMS)
        todo = [(str(i), i, here) for i in range(n)]
    left = []
    for name, i, mine in todo:
        kept = store.verdicts(part, name)
        left.append((part, name, i, tuple(claim for claim in mine if claim not in kept), dict(settings)))
    return [job for job in left if job[3]]


def one(job: Job) -> dict[str, Any]:
    """A line: the verdicts of one model."""
    part, _, index, names, settings = job
    start = time.perf_counter()
    if part == PLANTED:
        found, facts = PLANTINGS[index].judged(), {}
    else:
        null = DRAWN[part](index, seed=settings["seed"], n=settings["examples"], shots=settings["shots"])
        found = claiming.judged(
            null.model, null.examples, null.right, claiming.named(names), steps=settings["steps"], seed=null.seed
        )
        facts = null.facts()
    return {**facts, **found, "in_all": round(time.perf_counter() - start, 2)}


def run(work: Sequence[Job], store: Store, *, workers: int, say: Callable[[str], None]) -> None:
    """Does the jobs and keeps each result as soon as it is there."""
    start = time.perf_counter()
    for done, (job, found) in enumerate(_results(work, workers), 1):
        store.add(job[0], job[1], found)
        borne = [name for name, row in found["verdicts"].items() if row["word"] == claiming.BORNE_OUT]
        none = [name for name, row in found["verdicts"].items() if row.get("no_data")]
        left = (time.perf_counter() - start) / done * (len(work) - done)
        say(
            f"{done}/{len(work)} {job[0]} {job[1]}: {found['in_all']:.1f} s; borne out: {', '.join(borne) or 'none'}"
            f"{'; no data: ' + ', '.join(none) if none else ''}; about {left / 60:.1f} min left"
        )


def _results(work: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """In this process if one worker is asked for; otherwise as they come."""
    if workers == 1 or len(work) <= 1:
        for job in work:
            yield job, one(job)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that are started
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    try:
        futures = {pool.submit(one, job): job for job in work}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)

"""Makes the engine that was chosen. PyTorch is loaded by what needs it: a worker's process begins with this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pycotmech.runs.settings import Settings
from pycotmech.runs.workers.engine import Engine, EngineChoice
from pycotmech.runs.workers.scheduler import Scheduler
from pycotmech.runs.workers.units import REPLICA, ReplicaSpec

if TYPE_CHECKING:
    from pycotmech.model import Model


@contextmanager
def open_engine(
    choice: EngineChoice,
    settings: Settings,
    model: Model,
    *,
    memory_gb: float | None,
    identity: Mapping[str, str],
    opener: str = REPLICA,
    alike: bool = True,
) -> Iterator[Engine]:
    """Yields the engine for a run, and ends its workers after the block. Workers start with the first unit.

    model: that of this process; the serial engine works on it, replicas are made of the same weights. memory_gb: what a sweep
    of one worker may use; None: a share of what is free where it runs. identity: digests that replicas elsewhere must have.
    opener, alike: what workers are made by (`units.REPLICA`) and how they are dealt units (`Scheduler`); the serial engine
    has neither.
    """
    if choice.engine == "serial":
        from pycotmech.runs.workers.replica import Replica
        from pycotmech.runs.workers.serial import SerialEngine

        yield SerialEngine(Replica(model, ReplicaSpec(settings, settings.device, None, memory_gb)))
        return
    threads = threads_of(choice, settings)
    if choice.engine == "ray":
        from pycotmech.runs.workers.ray import RayPool

        of_here = choice.ray_address is None and settings.device == "cpu"
        share = choice.n_workers(threads) if of_here else 1
        spec = ReplicaSpec(settings, settings.device, threads, memory_gb, share, identity=identity, opener=opener)
        with Scheduler(RayPool(spec, choice.workers, choice.ray_address), alike=alike) as engine:
            yield engine
        return
    from pycotmech.runs.workers.local import LocalPool
    from pycotmech.runs.workers.sharing import shared_weights

    n = choice.n_workers(threads)
    devices = _devices(settings.device, n)
    with shared_weights(model) as weights:
        shares = [devices.count(device) for device in devices]
        base = ReplicaSpec(settings, settings.device, threads, memory_gb, weights=weights, opener=opener)
        specs = [replace(base, device=device, share=share) for device, share in zip(devices, shares, strict=True)]
        with Scheduler(LocalPool(specs), alike=alike) as engine:
            yield engine


def threads_of(choice: EngineChoice, settings: Settings) -> int:
    """How many threads PyTorch has in each worker: as many as the settings say, otherwise this process's number shared out
    among the workers of this machine; one each if the number of workers is not given."""
    import torch

    if settings.threads is not None:
        return settings.threads
    if choice.engine == "serial":
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // choice.workers) if choice.workers else 1


def _devices(device: str, n: int) -> list[str]:
    """The device of each worker: with "cuda" all GPUs in turn."""
    import torch

    if device != "cuda":
        return [device] * n
    gpus = max(1, torch.cuda.device_count())
    return [f"cuda:{i % gpus}" for i in range(n)]

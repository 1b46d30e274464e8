"""How much memory is free, and what to say when it runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_UNKNOWN = 4 * 2**30  # neither Linux nor CUDA: a size that every machine has

HINT = "memory_gb= sets how much a call may use"


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device; on the CPU, what the machine has and what the process's control groups allow. What
    PyTorch keeps of a GPU's memory without using it is free too."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    found = [n for n in (_available(), cgroup_free()) if n is not None]
    return min(found, default=_UNKNOWN)


def _available() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_free(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the memory limits of the process's control groups (version 1 or 2) leave; None where there is no limit.

    Each level limits those below it. Inactive pages of files count as free: the kernel drops them first.
    """
    found = []
    for line in _lines(proc):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        if controllers:
            mount, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            mount, names = root, ("memory.max", "memory.current", "inactive_file")
        here = mount / path.lstrip("/")
        for level in (here, *here.parents):
            if level == mount or mount in level.parents:
                found.append(_level_free(level, *names))
    return min((n for n in found if n is not None), default=None)


def _level_free(level: Path, limit_name: str, usage_name: str, inactive_name: str) -> int | None:
    limit, usage = _lines(level / limit_name), _lines(level / usage_name)
    if not limit or not usage or not limit[0].isdigit():  # "max": none
        return None
    inactive = next((int(line.split()[1]) for line in _lines(level / "memory.stat") if line.split()[0] == inactive_name), 0)
    return max(0, int(limit[0]) - int(usage[0]) + inactive)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []


def ran_out(error: Exception) -> bool:
    """Whether memory could not be had."""
    words = ("can't allocate memory", "bad_alloc", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


@contextmanager
def hint_at_budget(what: str) -> Iterator[None]:
    """MemoryError with a hint at the budget where memory runs out in the block, in which `what` is done."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) or HINT in str(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]  # Python's own MemoryError says nothing
        raise MemoryError(f"memory ran out while {what} ({said}); {HINT}, and free memory helps") from error

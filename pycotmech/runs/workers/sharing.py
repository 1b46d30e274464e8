"""Weights that replicas share instead of copying: all of them map one file, whose pages are in memory once.

transformers maps a safetensors file and takes its tensors out of the mapping where the dtype is the file's own. Where it is
another one, or an adapter was merged, the main process writes its weights to a checkpoint of their own once.
"""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pycotmech.runs.workers.units import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pycotmech.model import Model

_MAPS = Path("/proc/self/maps")


@contextmanager
def shared_weights(model: Model) -> Iterator[Weights]:
    """Yields where replicas find the weights of this model, so that they map them.

    That is where it came from if it is mapped itself. Otherwise a checkpoint in a temporary folder of the model cache, which is
    removed at the end. Raises OSError where there is no room for it. Cost: one write of the weights, if they are not mapped.
    """
    if is_mapped(model):
        yield Weights()
        return
    from pycotmech.model.converted import cache_root

    root = cache_root() / "replicas"
    size = weights_bytes(model)
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        folder = tempfile.mkdtemp(dir=root)
    except OSError as error:
        raise OSError(f"{root} cannot be written; set PYCOTMECH_CACHE to a folder with room ({error})") from error
    try:
        if free < size + (64 << 20):
            raise OSError(
                f"the weights that workers share need {size / 1e9:.1f} GB in {root}, which has {free / 1e9:.1f} GB free; set "
                "PYCOTMECH_CACHE to a folder with room"
            )
        # As the weights are now: transformers would give those of MXFP4 experts the names of their blocks.
        cast("PreTrainedModel", model.hf).save_pretrained(folder, save_original_format=False)
        yield Weights(folder, model.name, model.prepend_bos, model.notes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def weights_bytes(model: Model) -> int:
    """Bytes of the weights and buffers that a checkpoint of the model holds."""
    return sum(t.numel() * t.element_size() for t in model.hf.state_dict().values())


def is_mapped(model: Model) -> bool:
    """Whether every weight lies in a mapped safetensors file. False where the system does not say."""
    try:
        lines = _MAPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    ranges = []
    for line in lines:
        place, _, rest = line.partition(" ")
        begin, end = (int(part, 16) for part in place.split("-"))
        ranges.append((begin, end, rest.rstrip().endswith(".safetensors")))
    begins = [begin for begin, _, _ in ranges]

    def mapped(address: int) -> bool:
        _, end, of_file = ranges[max(0, bisect_right(begins, address) - 1)]
        return of_file and address < end

    weights = [t for t in model.hf.state_dict().values() if t.numel()]
    return bool(weights) and all(t.device.type == "cpu" and mapped(t.data_ptr()) for t in weights)

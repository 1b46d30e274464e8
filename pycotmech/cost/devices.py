"""Devices by name, with what their data sheets say, and what share of it is taken to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from pycotmech._choices import unknown_choice
from pycotmech.cost.demand import Demand, layer_weight_bytes, logit_traffic, row_traffic
from pycotmech.display import Described, Facts
from pycotmech.model.config import ModelConfig, layer_flop, logits_flop


class Device(Protocol):
    """Something that work is done on."""

    @property
    def name(self) -> str: ...

    def seconds(self, cfg: ModelConfig, demand: Demand) -> float:
        """How long it takes for this demand of a model of these sizes."""
        ...


@dataclass(frozen=True)
class DataSheet(Described):
    """A GPU as its data sheet describes it: a roofline (Williams et al. 2009) with a share of each peak that kernels reach.

    half, single: peak FLOP/s of dense products in 16 bit and in float32 (without TF32, which exact float32 refuses). bandwidth:
    bytes/s. memory: bytes. source: where these are from.

    products: share of the peak that large products of matrices reach. On an H100 770 to 800 of 989 TFLOP/s were measured
        by others, with 8,192^3 products in bfloat16.
    attention: share of it that fused attention written in Triton reaches: 372 to 395 of 989 TFLOP/s at d_head 128 are
        published.
    statistics: work of the statistics of attention weights, as a multiple of that of attention: top keys 0.8, attention
        received 0.5.
    copies: share of the bandwidth that copies reach: 3.0 of 3.35 TB/s were measured by others on an H100.
    launch: seconds between kernels that the host launches one by one.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: float
    source: str
    products: float = 0.80
    attention: float = 0.40
    statistics: float = 1.3
    copies: float = 0.90
    launch: float = 5e-6

    def described(self) -> Facts:
        return Facts(
            f"{self.name}, by its data sheet",
            {
                "products in 16 bit": f"{self.half / 1e12:,.0f} TFLOP/s at most, {self.products:.0%} of it taken to be reached",
                "products in float32": f"{self.single / 1e12:,.0f} TFLOP/s at most",
                "attention": f"{self.attention:.0%} of the peak",
                "bandwidth": f"{self.bandwidth / 1e12:,.2f} TB/s, {self.copies:.0%} of it in copies",
                "memory": f"{self.memory / 2**30:,.0f} GiB",
                "source": self.source,
            },
        )

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP/s that large products reach in this dtype. float64 counts as half of float32."""
        peak = {torch.bfloat16: self.half, torch.float16: self.half, torch.float32: self.single}.get(dtype, self.single / 2)
        return peak * self.products

    def seconds(self, cfg: ModelConfig, demand: Demand) -> float:
        """See `Device`. Each part takes the longer of its arithmetic and its bytes; parts follow one another; the host's
        launches hide behind them, or they behind the launches."""
        row, bandwidth = layer_flop(cfg), self.bandwidth * self.copies
        rate = self.rate(cfg.dtype)
        fused = rate / self.products * self.attention
        # A bfloat16 model's logits are products of 16-bit numbers with sums in float32.
        head = demand.unembedded * logits_flop(cfg) / rate
        found = max(demand.layer_rows * row.linear / rate, demand.passes * layer_weight_bytes(cfg) / bandwidth)
        found += demand.layer_rows * row_traffic(cfg) / bandwidth
        found += (demand.keys + self.statistics * demand.weighed) * row.per_key / fused
        found += head + demand.unembedded * logit_traffic(cfg) / bandwidth
        found += demand.wide / (self.single * self.products) + demand.traffic / bandwidth
        return max(found, demand.launches * self.launch)


_TERA, _GIB = 1e12, 2.0**30
DEVICES = {
    sheet.name: sheet
    for sheet in (
        DataSheet("a100", 312 * _TERA, 19.5 * _TERA, 2.039 * _TERA, 80 * _GIB, "NVIDIA A100 data sheet, SXM, 80 GB"),
        DataSheet("h100", 989.4 * _TERA, 66.9 * _TERA, 3.35 * _TERA, 80 * _GIB, "NVIDIA H100 data sheet, SXM, 80 GB"),
        DataSheet("h200", 989.4 * _TERA, 66.9 * _TERA, 4.8 * _TERA, 141 * _GIB, "NVIDIA H200 data sheet, SXM, 141 GB"),
        DataSheet(
            "b200", 2250 * _TERA, 80 * _TERA, 8.0 * _TERA, 180 * _GIB, "NVIDIA HGX B200 data sheet, one of eight, 1,000 W"
        ),
    )
}
"""GPUs by name. Peaks are of dense products, half of those that data sheets give with sparsity."""


def device_named(name: str, argument: str = "device") -> DataSheet:
    """The data sheet of a device. Raises ValueError naming the argument."""
    if name.lower() not in DEVICES:
        raise ValueError(unknown_choice(argument, name, DEVICES))
    return DEVICES[name.lower()]

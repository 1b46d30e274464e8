"""A model of cost: what a question asks of a machine, counted from shapes, and how long a device takes for it.

    from pycotmech.cost import DEVICES, heads, without_weights

    family = without_weights(config)                       # a transformers configuration; nothing is loaded
    demand = heads(family, tokens=640, suffix=40)          # all heads at all positions
    DEVICES["h100"].seconds(family.cfg, demand)            # from its data sheet
    measured(family.cfg).seconds(family.cfg, demand)       # of this machine, after two short measurements

Tests: `test_cost.py` for `demand`, `devices`, `machine`, `questions`.
"""

from pycotmech.cost.demand import Demand
from pycotmech.cost.devices import DEVICES, DataSheet, Device, device_named
from pycotmech.cost.machine import Measured, measured, measured_speed, of_model, speed_and_device
from pycotmech.cost.questions import head_logits, heads, lens, of_plan, paths, prompts, summary, suppression
from pycotmech.model.families.registry import without_weights

__all__ = [
    "DEVICES",
    "DataSheet",
    "Demand",
    "Device",
    "Measured",
    "device_named",
    "head_logits",
    "heads",
    "lens",
    "measured",
    "measured_speed",
    "of_model",
    "of_plan",
    "paths",
    "prompts",
    "speed_and_device",
    "summary",
    "suppression",
    "without_weights",
]

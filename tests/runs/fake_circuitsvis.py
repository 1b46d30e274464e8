"""In the place of the package circuitsvis: it keeps what it is given."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of the last `text_neuron_activations`."""
    given = {}

    def text_neuron_activations(**arguments):
        given.update(arguments)
        return SimpleNamespace(local_src="<p>drawn</p>")

    package = ModuleType("circuitsvis")
    package.activations = SimpleNamespace(text_neuron_activations=text_neuron_activations)
    package.attention = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "circuitsvis", package)
    return given

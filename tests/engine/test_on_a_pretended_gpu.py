"""Questions on a pretended GPU, all but `NOT_HERE`: what Python does there, with captured and replayed passes; no values."""

import pytest
import torch

import pycotmech as pcm
from pycotmech import cost
from pycotmech.cli import checks
from pycotmech.engine import graphs
from tests.reference.pretended_gpu import pretended_gpu
from tests.reference.questions import QUESTIONS
from tests.reference.tiny import tiny_llama

NOT_HERE = {
    "attribution": "needs gradients",
    "written": "compares values with their sum",
}
QUICK = ("summary", "run")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.filterwarnings("ignore:clean, corrupted"),
]


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(graphs.Graphs, "_compare", staticmethod(lambda replayed, usual, dtype: None))
    graphs.kept.clear()
    with pretended_gpu() as gpu, torch.no_grad():
        yield gpu, pcm.Model(tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2, dtype=torch.bfloat16).cuda(), check=False)
    graphs.kept.clear()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in QUESTIONS if n not in NOT_HERE]
)
def test_every_question(name, on_gpu):
    gpu, model = on_gpu
    for _ in range(3):
        QUESTIONS[name](model)
    assert gpu.launched.total() > 10
    found = graphs.kept.of(model.family)
    captured = found is not None and found.captures["variants"]
    assert bool(captured) == (name not in ("run", "summary", "scores", "lens"))


def test_this_gpu_is_measured_for_the_model_of_cost(on_gpu):
    gpu, model = on_gpu
    found = cost.of_model(model)
    assert found.attention > 0 and found.factor > 0 and gpu.launched["prefix_kernel"] > 0


def test_the_doctor_asks_the_gpu(on_gpu):
    rows = list(checks.cuda())
    assert rows[0][1] and "compute capability 9.0" in rows[0][2]

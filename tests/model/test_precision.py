"""Products whose inputs PyTorch was told to round: refused for float32, where they would be rounded, and nowhere else."""

import pytest
import torch

import pycotmech as pcm
from pycotmech.model.precision import matmul_precision, refuse_rounded_products
from tests.reference.tiny import tiny_llama

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def precise():
    """Leaves the settings as they were."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = cuda.fp32_precision, cpu.fp32_precision
    yield
    cuda.fp32_precision, cpu.fp32_precision = before


def tf32_on_gpus():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("switch", [tf32_on_gpus, lambda: torch.set_float32_matmul_precision("high")])
def test_tf32_is_refused_where_a_float32_model_is_on_a_gpu(precise, switch):
    switch()
    with pytest.raises(ValueError, match=r"float32 and torch.backends.cuda.matmul.fp32_precision is 'tf32', which rounds"):
        refuse_rounded_products(torch.float32, [CPU, GPU])
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        refuse_rounded_products(dtype, [GPU])
    refuse_rounded_products(torch.float32, [CPU])


def test_bfloat16_on_cpus_is_refused(precise):
    model = pcm.Model(tiny_llama())
    torch.set_float32_matmul_precision("medium")
    with pytest.raises(ValueError, match=r"torch.backends.mkldnn.matmul.fp32_precision is 'bf16'"):
        model.run(torch.arange(9))
    torch.set_float32_matmul_precision("highest")
    assert matmul_precision() == ("ieee", "ieee")
    model.run(torch.arange(9))


def test_a_model_on_the_cpu_answers_the_same_under_tf32(precise):
    model = pcm.Model(tiny_llama())
    tokens = torch.arange(12)
    before = model.run(tokens).logits
    tf32_on_gpus()
    assert torch.equal(model.run(tokens).logits, before)
    assert pcm.patch_heads(model, tokens, tokens.flip(0)).raw.shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_refused_by_name(dtype):
    model = pcm.Model(tiny_llama(dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(
            ValueError, match=r"torch.autocast is on for 'cpu', which rounds inputs of products to torch.bfloat16"
        ):
            model.run(torch.arange(9))
        refuse_rounded_products(dtype, [torch.device("meta")])
    model.run(torch.arange(9))

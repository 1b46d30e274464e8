"""Makes the traces in pycotmech/data/traces: reasoning that small models wrote themselves, with the seeds that made it.

Three kinds of questions, each after a few solved ones: ontologies of five hops, sums of single digits taken step by step, and
lists that are copied item by item; and the same two to three times as long. The model samples what follows up to its first
answer (temperature 0.6, top-p 0.95, as in Thought Anchors); of a long sum or list the answer is the likeliest one. A trace is
kept if it has an answer and at least four sentences before it (a long one 12 to 30), whether the answer is right or not.

    python examples/make_traces.py --model smollm2-135m [--kinds sum,list,"long sum","long list"] [--each 4] [--out FOLDER]

Shipped are: of smollm2-135m what --kinds sum,list makes; of smollm2-135m-cot --kinds ontology --each 6; of gemma3-270m six
traces of --kinds sum,list,"long sum" --each 3. smollm2-135m-long.jsonl holds the first two of smollm2-135m of --kinds
"long list"; the third repeats itself, and the tuned model keeps up no longer ontology.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import pycotmech as pcm
from pycotmech.traces import Trace

ITEMS = (
    "apple", "bread", "candle", "drum", "eagle", "flute", "grape", "hammer", "island", "jacket", "kettle", "lemon", "mirror",
    "needle", "orange", "pencil", "rabbit", "saddle", "table", "violin",
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
    "thirteenth", "fourteenth", "fifteenth", "sixteenth",
)  # fmt: skip
KINDS = ("sum", "list", "ontology", "long sum", "long list", "long ontology")
CUE = " The answer is"
TRIES = 2
"""Seeds that are tried for a question."""
FEWEST, LONG = 4, (12, 30)
"""Sentences of a trace: at least, and of a long one at least and at most."""


def sums(rng: random.Random, shots: int = 3, terms: int = 8) -> str:
    """A prompt with solved sums and one to solve."""
    parts = []
    for i in range(shots + 1):
        digits = [rng.randint(1, 9) for _ in range(terms)]
        text, total = f"Question: What is {' + '.join(map(str, digits))}?\nSolution:", digits[0]
        if i < shots:
            steps = [f" Start with {total}."]
            for d in digits[1:]:
                steps.append(f" Add {d} to {total} to get {total + d}.")
                total += d
            text += "".join(steps) + f" The answer is {total}."
        parts.append(text)
    return "\n\n".join(parts)


def lists(rng: random.Random, shots: int = 3, n: int = 8) -> str:
    """A prompt with lists copied item by item, and one to copy."""
    parts = []
    for i in range(shots + 1):
        items, asked = rng.sample(ITEMS, n), rng.randrange(n)
        text = f"List: {', '.join(items)}.\nQuestion: Which item is the {ORDINALS[asked]}?\nSolution:"
        if i < shots:
            steps = [f" The {ORDINALS[j]} item is {item}." for j, item in enumerate(items)]
            text += "".join(steps) + f" The answer is {items[asked]}."
        parts.append(text)
    return "\n\n".join(parts)


def ontologies(model: pcm.Model, n: int, seed: int, hops: int = 5) -> list[str]:
    """Prompts with two solved ontologies and one to solve; without a BOS token, which the model's tokenizer writes."""
    examples = pcm.cot.make_examples(n, hops=hops, shots=2, seed=seed, tokenizer=model.tokenizer, bos=model.prepend_bos)
    return [e.full_text.removesuffix(e.chain).rstrip() for e in examples]


def written(model: pcm.Model, prompt: str, name: str, *, stop: str) -> Trace | None:
    """The first trace of this prompt with an answer after enough sentences, over a few seeds; None if there is none."""
    long = name.startswith("long")
    least, most = LONG if long else (FEWEST, LONG[1])
    for seed in range(TRIES):
        try:
            if long and "ontology" not in name:
                trace = Trace.generate(model, prompt, seed=seed, max_new=320, stop=CUE, cue=CUE, answer_tokens=4, name=name)
                if least <= trace.n_sentences <= most:
                    return trace
                continue
            trace = Trace.generate(model, prompt, seed=seed, max_new=320 if long else 130, stop=stop, cue=None, name=name)
            completion = trace.text[trace.n_prompt :]
            said = re.search(r"answer is (\w+)\.|(True|False)$", completion)
            if said is None:
                continue
            answer = said[1] or said[2]
            trace = Trace.from_text(model, prompt, completion[: said.end()], answer=answer, name=name, seed=seed)
        except ValueError:  # nothing but an answer
            continue
        if least <= trace.n_sentences <= most:
            return trace
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-cot")
    parser.add_argument("--kinds", default="sum,list,long sum,long list")
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(pcm.__file__).parent / "data" / "traces")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: got {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    model = pcm.Model.from_pretrained(arguments.model, dtype="float32")
    prompts = [(f"{kind} {i}", prompt) for kind in kinds for i, prompt in enumerate(asked(model, kind, arguments.each))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / f"{arguments.model}.jsonl", "w", encoding="utf-8") as file:
        for name, prompt in prompts:
            trace = written(model, prompt, name, stop="\n")
            print(name, "none" if trace is None else f"{trace}: {trace.answer_text!r}", flush=True)
            if trace is not None:
                file.write(json.dumps(trace.to_record()) + "\n")
                file.flush()


def asked(model: pcm.Model, kind: str, n: int) -> list[str]:
    """The prompts of a kind."""
    long = kind.startswith("long")
    if kind.endswith("ontology"):
        return ontologies(model, n, 0, hops=12 if long else 5)
    rng, (shots, terms) = random.Random(0), (2, 14) if long else (3, 8)
    of_sums = [sums(rng, shots, terms) for _ in range(n)]  # drawn first for lists as well: the shipped ones were
    return of_sums if kind.endswith("sum") else [lists(rng, shots, terms) for _ in range(n)]


if __name__ == "__main__":
    main()

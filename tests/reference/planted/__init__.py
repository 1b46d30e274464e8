"""Models whose circuits are known because they were written by hand.

    from tests.reference import planted

    p = planted.induction()
    p.heads                       # {"previous": (0, 1), "writer": (1, 2)}
    prompt = p.prompts(1)[0]      # tokens, corrupted, answer, wrong, positions, segments
    pcm.patch_heads(p.model, prompt.tokens, prompt.corrupted)

`ALL` maps each name to its function; `nothing` is the model in which nothing was planted. `examples(p, n)` gives prompts as
`pcm.cot` takes them, so that every analysis can be run on a planted model.
"""

from tests.reference.planted.examples import OneStep, examples
from tests.reference.planted.models import (
    Planted,
    Prompt,
    abiding,
    bigram,
    copying,
    induction,
    looking_back,
    nothing,
    parallel,
    relation,
)
from tests.reference.planted.two_steps import TwoSteps, two_circuits, two_step_examples
from tests.reference.planted.words import BOS, CONCEPTS, CONTENT, ID, NAMES, PROPERTIES, WORDS

ALL = {f.__name__: f for f in (induction, copying, bigram, parallel, relation)}

__all__ = [
    "ALL",
    "BOS",
    "CONCEPTS",
    "CONTENT",
    "ID",
    "NAMES",
    "PROPERTIES",
    "WORDS",
    "OneStep",
    "Planted",
    "Prompt",
    "TwoSteps",
    "abiding",
    "bigram",
    "copying",
    "examples",
    "induction",
    "looking_back",
    "nothing",
    "parallel",
    "relation",
    "two_circuits",
    "two_step_examples",
]

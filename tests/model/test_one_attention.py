"""Attention, and the parts of the Hugging Face model, are the family's: nobody else makes scores or reads modules by name."""

import ast
from pathlib import Path

import pycotmech

PACKAGE = Path(pycotmech.__file__).parent
HOME = ("ops", "model/families", "kernels")
MEASURES_OPS = "cost/machine.py"  # how fast the ops are on this machine
TAKES_PLAIN_MODULES = "cli/checks.py"  # the doctor compares with hooks on the Hugging Face model itself
MADE = {"softmax", "scaled_dot_product_attention", "tril", "prefix_attn"}
MADE |= {f"attn_{name}" for name in ("extract", "topk", "colsum", "rows", "entries")}
MODULES = {"self_attn", "lm_head", "embed_tokens", "rotary_emb", "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj"}


def elsewhere(but: str):
    assert (PACKAGE / but).is_file()
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE)
        if not here.as_posix().startswith((*HOME, but)):
            yield here, ast.parse(path.read_text())


def test_nobody_else_makes_attention():
    found = [
        f"{here}:{node.lineno} {node.func.attr}"
        for here, tree in elsewhere(MEASURES_OPS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MADE
    ]
    assert not found


def test_nobody_else_reads_the_modules_of_a_model():
    found = [
        f"{here}:{node.lineno} {node.attr}"
        for here, tree in elsewhere(TAKES_PLAIN_MODULES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in MODULES
    ]
    assert not found

"""One way of looking at attention, run in a process of its own: its time, its peak memory, and what it found.

    python -m tests.attention.measured ours --model smollm2-135m --tokens 1024 --dtype float32 --threads 1 --out found.npz

Kinds: `sdpa` a plain Hugging Face forward that keeps the last position's logits (no statistics; what it finds is computed
afterwards, by hand, for the last rows); `eager` Hugging Face with output_attentions=True; `transformer_lens` its
run_with_cache of all patterns; `ours` attention_summary of every row. Models: an alias, or a shape with random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("sdpa", "eager", "transformer_lens", "ours")
SHAPES = {
    "smollm2-shape": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    ),
    "narrow": dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=1000,
    ),
    "llama2-2-layers": dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=32,
        vocab_size=32000,
    ),
}  # fmt: skip
ROWS = 8
"""The last rows, whose statistics every kind hands over for comparison."""


@dataclass(frozen=True)
class Measured:
    """seconds, cpu: wall and processor time of the pass alone, model loaded, best of the runs. peak: bytes, the process's
    resident memory, weights included. before: the same in front of the first run. mass [L, H, ROWS, 4], entropy
    [L, H, ROWS] of the last rows."""

    seconds: float
    cpu: float
    peak: int
    before: int
    mass: np.ndarray
    entropy: np.ndarray


def measure(
    kind: str, *, model: str, tokens: int, dtype: str = "float32", threads: int = 1, runs: int = 2, timeout: float = 1800
) -> Measured:
    """Runs a kind in a fresh process. RuntimeError holds its error output."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        options = {"--model": model, "--tokens": tokens, "--dtype": dtype, "--threads": threads, "--runs": runs, "--out": out}
        command = [sys.executable, "-m", "tests.attention.measured", kind, *(str(x) for pair in options.items() for x in pair)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        found = np.load(out)
        return Measured(**json.loads(done.stdout.splitlines()[-1]), mass=found["mass"], entropy=found["entropy"])


def segments(T: int) -> dict[str, slice]:
    """Three segments beside the first token."""
    return {"early": slice(1, T // 4), "middle": slice(T // 4, T // 2), "late": slice(T // 2, T)}


def statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(mass [.., R, 4], entropy [.., R]) of pattern rows [.., R, T]."""
    p = rows.double()
    groups = [*segments(p.shape[-1]).values(), slice(0, 1)]
    return torch.stack([p[..., g].sum(-1) for g in groups], -1), -torch.xlogy(p, p).sum(-1)


def load(name: str, dtype: str) -> nn.Module:
    if name not in SHAPES:
        import pycotmech as pcm

        return pcm.Model.from_pretrained(name, dtype=dtype, check=False).hf
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    torch.set_default_dtype(getattr(torch, dtype))
    with no_init_weights():
        hf = LlamaForCausalLM(LlamaConfig(**SHAPES[name], max_position_embeddings=1 << 16)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in hf.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1)
            else:
                gain = 2.0 if "q_proj" in key or "k_proj" in key else 1.0
                weight.uniform_(-1, 1, generator=generator).mul_(gain * (3 / weight.shape[1]) ** 0.5)
    return hf


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    for option, kind in (("model", str), ("tokens", int), ("dtype", str), ("threads", int), ("runs", int), ("out", str)):
        parser.add_argument(f"--{option}", type=kind, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hf = load(args.model, args.dtype)
    ids = torch.randint(3, hf.config.vocab_size, (1, args.tokens), generator=torch.Generator().manual_seed(1))
    run, look = globals()[f"_{args.kind}"](hf, ids)
    before = reset_peak()
    seconds, cpu = [], []
    with torch.no_grad():
        for _ in range(args.runs):
            result = None  # the results of the run before are given back first
            start, used = time.perf_counter(), time.process_time()
            result = run()
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        mass, entropy = look(result)
    np.savez(args.out, mass=np.asarray(mass), entropy=np.asarray(entropy))
    print(json.dumps({"seconds": min(seconds), "cpu": min(cpu), "peak": peak, "before": before}))


def reset_peak() -> int:
    """Makes the peak of resident memory that of now (loading a model holds some weights twice); returns it, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sdpa(hf: nn.Module, ids: Tensor):
    hf.set_attn_implementation("sdpa")

    def run():
        return hf(ids, use_cache=False, logits_to_keep=1).logits

    def look(_logits):
        """The same pass once more, each layer's last rows written out from its queries and keys."""
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask

        found = []

        def attention(module, q, k, v, mask, scaling=None, **options):
            s = q[0, :, -ROWS:].double() @ k[0].double().repeat_interleave(q.shape[1] // k.shape[1], 0).mT * scaling
            late = torch.arange(k.shape[2]) > torch.arange(k.shape[2] - ROWS, k.shape[2])[:, None]
            found.append(statistics(s.masked_fill(late, -torch.inf).softmax(-1)))
            return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **options)

        AttentionInterface.register("sdpa_and_rows", attention)
        AttentionMaskInterface.register("sdpa_and_rows", sdpa_mask)
        hf.set_attn_implementation("sdpa_and_rows")
        run()
        return tuple(torch.stack(each) for each in zip(*found, strict=True))

    return run, look


def _eager(hf: nn.Module, ids: Tensor):
    hf.set_attn_implementation("eager")

    def run():
        return hf(ids, use_cache=False, logits_to_keep=1, output_attentions=True).attentions

    return run, lambda patterns: statistics(torch.stack([p[0, :, -ROWS:] for p in patterns]))


def _transformer_lens(hf: nn.Module, ids: Tensor):
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:  # it reads the configuration by name, and wants a tokenizer of that name
        hf.config.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=hf.dtype)
    names = [f"blocks.{l}.attn.hook_pattern" for l in range(hf.config.num_hidden_layers)]

    def run():
        return bridge.run_with_cache(ids, names_filter=names)[1]

    return run, lambda cache: statistics(torch.stack([cache[name][0, :, -ROWS:] for name in names]))


def _ours(hf: nn.Module, ids: Tensor):
    import pycotmech as pcm

    model = pcm.Model(hf, check=False)

    def run():
        return pcm.attention_summary(model, ids[0], segments=segments(ids.shape[1]), top_k=8)

    return run, lambda s: (s.mass[..., -ROWS:, :], s.entropy[..., -ROWS:])


if __name__ == "__main__":
    main()

"""Writing weights by hand: a Llama whose residual stream is cut into named spaces, each a one-hot code of the vocabulary.

What makes the parts of a Llama do one known thing:

* RMSNorm. One constant dimension is much larger than everything that is ever written, so that the norm of a row changes by
  under 1 %; the norm's weight undoes the division. What a layer reads is then what is in the residual stream, to 1 %.
* RoPE. A huge rope_theta makes half of the frequencies turn by less than 1e-4 over a whole prompt: those dims carry content.
  The fastest few carry position: a constant query, and a key that is the query turned back by k positions, meet best at
  distance k.
* No match. Every planted head rests on the first token, whose value is zero, unless something scores higher.
* SwiGLU. One neuron per word: the gate is the word's one-hot, the value is constant.

Heads and neurons that are not planted are drawn at random: they attend almost evenly and write a little of everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from tests.reference.planted.words import BOS, N_WORDS, tokenizer
from tests.reference.truth import double

SPACES = {"token": 1.0, "previous": 4.0, "subject": 6.0, "prior": 10.0, "answer": 20.0}
"""The spaces, and the weight with which the unembedding reads each: what is written last speaks loudest."""
FLAGS = ("after_so",)
N_JUNK = 8

D_MODEL = len(SPACES) * N_WORDS + N_JUNK + 8
ONE = D_MODEL - 1  # the constant dimension
LEVEL = 20.0  # its value

_HALF = N_WORDS + 8
D_HEAD = 2 * _HALF
THETA = 1e12
_SLOW = _HALF // 2
CONTENT_DIMS = [*range(_HALF - _SLOW, _HALF), *range(D_HEAD - _SLOW, D_HEAD)]
"""The dims of a head that do not turn: first one for each word, then eight for features."""
_POSITION_FREQUENCIES = 6

MATCH, SINK = 20.0, 10.0  # attention scores, after scaling
WRITE = 0.6  # of a one-hot in "answer": a logit of 12 among zeros, a probability of 0.9997


def space(name: str) -> slice:
    i = list(SPACES).index(name)
    return slice(i * N_WORDS, (i + 1) * N_WORDS)


def feature(name: str, words: Sequence[int] | None = None) -> Tensor:
    """[d_model]: reads 1 if one of these words (None: any) stands in a space; 1 if a flag is set; 1 always for "one"."""
    direction = torch.zeros(D_MODEL)
    if name == "one":
        direction[ONE] = 1 / LEVEL
    elif name in FLAGS:
        direction[len(SPACES) * N_WORDS + N_JUNK + FLAGS.index(name)] = 1
    else:
        direction[space(name)][slice(None) if words is None else list(words)] = 1
    return direction


class Circuit:
    """A model under construction. Give heads what they do, then `finish`."""

    def __init__(self, *, n_layers: int, n_heads: int, seed: int = 0, noise: float = 0.004) -> None:
        config = LlamaConfig(
            vocab_size=N_WORDS, hidden_size=D_MODEL, intermediate_size=N_WORDS + 8, num_hidden_layers=n_layers,
            num_attention_heads=n_heads, num_key_value_heads=n_heads, head_dim=D_HEAD, max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": THETA}, attn_implementation="eager",
            bos_token_id=BOS, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        self.hf = LlamaForCausalLM(config).eval().requires_grad_(False)
        self.n_layers, self.n_heads, self.noise = n_layers, n_heads, noise
        self.generator = torch.Generator().manual_seed(seed)
        for name, weight in self.hf.named_parameters():
            weight.fill_(LEVEL / D_MODEL**0.5) if name.endswith("norm.weight") else weight.zero_()
        self.hf.model.embed_tokens.weight[:, space("token")] = torch.eye(N_WORDS)
        self.hf.model.embed_tokens.weight[:, ONE] = LEVEL
        for name, weight in SPACES.items():
            self.hf.lm_head.weight[:, space(name)] = weight * torch.eye(N_WORDS)
        self._taken: set[tuple[int, int]] = set()
        self._neurons: dict[int, int] = {}
        self._next_feature: dict[tuple[int, int], int] = {}

    # ---- queries and keys ------------------------------------------------------------------------------------------

    def match(self, head: tuple[int, int], query: str, key: str, *, score: float = MATCH) -> None:
        """Adds `score` where the word in the query's space is the word in the key's space."""
        W_Q, W_K = self._rows(head, "q_proj"), self._rows(head, "k_proj")
        amplitude = (score * D_HEAD**0.5) ** 0.5
        for word, dim in zip(range(N_WORDS), CONTENT_DIMS, strict=False):
            W_Q[dim, space(query).start + word] = amplitude
            W_K[dim, space(key).start + word] = amplitude

    def score(self, head: tuple[int, int], query: Tensor, key: Tensor, score: float) -> None:
        """Adds score * query(x_q) * key(x_k); query and key are features."""
        n = self._next_feature.get(head, 0)
        self._next_feature[head] = n + 1
        dim = CONTENT_DIMS[N_WORDS + n]
        amplitude = (abs(score) * D_HEAD**0.5) ** 0.5
        self._rows(head, "q_proj")[dim] = amplitude * query
        self._rows(head, "k_proj")[dim] = (amplitude if score > 0 else -amplitude) * key

    def rest(self, head: tuple[int, int], score: float = SINK) -> None:
        """Where the head looks if nothing else scores higher: at the first token."""
        self.score(head, feature("one"), feature("token", [BOS]), score)

    def offset(self, head: tuple[int, int], distance: int, *, query: Tensor | None = None, gap: float = MATCH) -> None:
        """Looks `distance` positions back: every other distance scores lower by at least `gap`, where query(x_q) is 1."""
        angle = THETA ** (-torch.arange(_POSITION_FREQUENCIES, dtype=torch.float64) / _HALF)
        lost = (1 - torch.cos(angle)).sum()  # of a unit amplitude, one position off
        amplitude = (gap / lost * D_HEAD**0.5) ** 0.5
        W_Q, W_K = self._rows(head, "q_proj"), self._rows(head, "k_proj")
        query = feature("one") if query is None else query
        for i, a in enumerate(angle):
            W_Q[i] = amplitude * query
            W_K[i] = amplitude * torch.cos(distance * a) * feature("one")
            W_K[_HALF + i] = amplitude * torch.sin(distance * a) * feature("one")

    # ---- what is written -------------------------------------------------------------------------------------------

    def copy(self, head: tuple[int, int], source: str, target: str, *, words: Sequence[int] | None = None, weight: float = 1.0):
        """Writes the word found in the source space into the target space; never the first token, on which heads rest."""
        W_V, W_O = self._rows(head, "v_proj"), self._columns(head)
        for word in range(N_WORDS) if words is None else words:
            if word != BOS:
                W_V[word, space(source).start + word] = 1
                W_O[space(target).start + word, word] = weight

    def write(self, head: tuple[int, int], value: Tensor, target: Tensor, *, weight: float = 1.0) -> None:
        """Writes weight * value(x_k) along a feature's direction."""
        self._rows(head, "v_proj")[N_WORDS] = value
        self._columns(head)[:, N_WORDS] = weight * target

    def junk(self, head: tuple[int, int], *, weight: float) -> None:
        """Writes the attended word's random code into dims that nothing reads."""
        self._rows(head, "v_proj")[:N_WORDS, space("token")] = torch.eye(N_WORDS)
        code = self._random(N_JUNK, N_WORDS)
        self._columns(head)[len(SPACES) * N_WORDS : len(SPACES) * N_WORDS + N_JUNK, :N_WORDS] = weight * code

    def table(self, layer: int, source: str, target: str, successor: Mapping[int, int], *, weight: float = 1.0) -> None:
        """The MLP of a layer writes successor[word] of the word in the source space into the target space."""
        mlp, gate = self.hf.model.layers[layer].mlp, 20.0
        for neuron, (word, following) in enumerate(successor.items()):
            mlp.gate_proj.weight[neuron, space(source).start + word] = gate
            mlp.up_proj.weight[neuron] = feature("one")
            mlp.down_proj.weight[space(target).start + following, neuron] = weight / gate
        self._neurons[layer] = len(successor)

    def readout(self, successor: Mapping[int, int], *, weight: float = 4.0) -> None:
        """The unembedding reads a word of the token space as its successor, not as itself."""
        self.hf.lm_head.weight[:, space("token")] = 0
        for word, following in successor.items():
            self.hf.lm_head.weight[following, space("token").start + word] = weight

    # ---- the rest --------------------------------------------------------------------------------------------------

    def finish(self, dtype: torch.dtype, name: str) -> pcm.Model:
        """Draws what was not planted and returns the model; a float64 model computes in float64 throughout."""
        for layer in range(self.n_layers):
            for head in range(self.n_heads):
                if (layer, head) not in self._taken:
                    self._distract((layer, head))
            self._noisy_neurons(layer)
        hf = double(self.hf) if dtype == torch.float64 else self.hf.to(dtype)
        hf.config.dtype = dtype
        return pcm.Model(hf, tokenizer(), name=name, prepend_bos=True)

    def _distract(self, head: tuple[int, int]) -> None:
        """Almost even attention; a little written into every dim but the constant, most of it where nothing reads."""
        for part, scale in (("q_proj", 0.5), ("k_proj", 0.5), ("v_proj", 1.0)):
            weight = self._random(D_HEAD, D_MODEL) * (scale if part == "v_proj" else scale / D_MODEL**0.5)
            if part == "v_proj":
                weight[:, ONE] = 0
            self._rows(head, part)[:] = weight
        self._columns(head)[:] = self._quiet(D_HEAD)

    def _noisy_neurons(self, layer: int) -> None:
        mlp, first = self.hf.model.layers[layer].mlp, self._neurons.get(layer, 0)
        n = mlp.gate_proj.weight.shape[0] - first
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[first:] = self._random(n, D_MODEL)
            part.weight[first:, ONE] = 0
        mlp.down_proj.weight[:, first:] = self._quiet(n)

    def _quiet(self, n: int) -> Tensor:
        """[d_model, n]: turns n values of size 1 into `noise` in each dim, ten times that in the junk, nothing in "one"."""
        out = self._random(D_MODEL, n) * self.noise / n**0.5
        out[len(SPACES) * N_WORDS : len(SPACES) * N_WORDS + N_JUNK] *= 10
        out[ONE] = 0
        return out

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _rows(self, head: tuple[int, int], part: str) -> Tensor:
        """[D, d_model], a view: the rows of a head in q_proj, k_proj or v_proj."""
        layer, h = head
        self._taken.add(head)
        return getattr(self.hf.model.layers[layer].self_attn, part).weight[h * D_HEAD : (h + 1) * D_HEAD]

    def _columns(self, head: tuple[int, int]) -> Tensor:
        """[d_model, D], a view: the columns of a head in o_proj."""
        layer, h = head
        self._taken.add(head)
        return self.hf.model.layers[layer].self_attn.o_proj.weight[:, h * D_HEAD : (h + 1) * D_HEAD]

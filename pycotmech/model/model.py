"""`pycotmech.Model`: a Hugging Face model, read and run stage by stage, its weights shared and left as found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.display import Described, Facts
from pycotmech.model.check import check_against_hf
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.registry import family_of
from pycotmech.model.placement import is_placed
from pycotmech.model.prefixes import Prefixes
from pycotmech.model.prompts import Tokens, is_prompt, resolve_positions, token_ids, unpacked
from pycotmech.model.run import Activations, run
from pycotmech.model.text_part import text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pycotmech.model.digests import WeightFiles


class Model(Described):
    """A causal language model whose every head can be read and edited.

    hf_model: a loaded Hugging Face model of a supported family (docs/families.md). Its weights are shared, never copied. Its
        hooks, flags and attention implementation are left unchanged, and it continues to work as before. Adapters, quantisation
        and hooks on its projections, norms or MLPs take effect, because these are called. What would be ignored is refused.
    tokenizer: its tokenizer, or None if prompts are always given as token ids.
    weight_files: the files its weights were loaded from, if known (`pycotmech.model.digests`).
    check: whether to run a short prompt and compare the logits with those of the Hugging Face model. A mismatch raises an error
        that names the first layer and stage that differ. Costs a forward pass of 32 tokens on both sides (three for 16-bit
        models).
    """

    def __init__(
        self,
        hf_model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        prepend_bos: bool | None = None,
        notes: Sequence[str] = (),
        weight_files: WeightFiles | None = None,
        check: bool = True,
    ) -> None:
        hf_model = _base_of(hf_model)
        if tokenizer is not None and not callable(tokenizer):
            raise TypeError(f"tokenizer: got {type(tokenizer).__name__}; expected a Hugging Face tokenizer, or None")
        self.family = family_of(hf_model)
        self.hf = cast("PreTrainedModel", hf_model)
        self.tokenizer: Any = tokenizer
        self.name = name or getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__
        self.prepend_bos = _checked_bos(prepend_bos, tokenizer)
        self.notes = tuple(notes)
        self.weight_files = weight_files
        """Where the weights came from, so that their digest need not be computed again; None if that is not known."""
        self.prefixes = Prefixes(self.family)
        """What sweeps keep of the beginnings of prompts: `.clear()`, `.nbytes`, `.limit`."""
        if check:
            check_against_hf(self.family)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        fuse_weights: bool = False,
        check: bool = True,
    ) -> Model:
        """Loads a model and its tokenizer.

        name_or_path: a Hugging Face hub name; a folder with config.json and safetensors; a GGUF file, a folder or an
            installed package with one in it; or an alias: "smollm2-135m", "smollm2-135m-cot", "tiny-cot".
        dtype: "float32", "bfloat16", "float16", "float64", a torch.dtype, or "auto" (the checkpoint's own).
        fuse_weights: whether queries, keys and values, and gate and up of MLPs, are computed by one product each. This takes
            fewer launches on a GPU and changes rounding. No weight is copied (`pycotmech.model.fused`).
        Only safetensors and GGUF are read; nothing is unpickled.
        Raises FileNotFoundError, ValueError or NotImplementedError, naming what is missing or wrong.
        """
        from pycotmech.model.loading import load

        found = load(
            name_or_path,
            dtype=dtype,
            device=device,
            revision=revision,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            fuse_weights=fuse_weights,
        )
        return cls(
            found.model,
            found.tokenizer,
            name=found.name,
            prepend_bos=found.prepend_bos,
            notes=found.notes,
            weight_files=found.weight_files,
            check=check,
        )

    @classmethod
    def from_nnsight(
        cls, wrapped: Any, *, name: str | None = None, prepend_bos: bool | None = None, check: bool = True
    ) -> Model:
        """Takes the Hugging Face model and the tokenizer of an nnsight model (`LanguageModel`); its weights are not copied.

        The nnsight model stays as it is and can be traced as before. What is hooked or replaced on it afterwards is not seen.
        Raises TypeError or ValueError, naming `wrapped`, for a model that is not loaded yet, or that carries edits.
        """
        from pycotmech.model.from_nnsight import from_nnsight

        model, tokenizer = from_nnsight(wrapped)
        return cls(model, tokenizer, name=name, prepend_bos=prepend_bos, check=check)

    @classmethod
    def from_nnterp(
        cls, wrapped: Any, *, name: str | None = None, prepend_bos: bool | None = None, check: bool = True
    ) -> Model:
        """Takes the Hugging Face model and the tokenizer of an `nnterp.StandardizedTransformer`, as `from_nnsight` does."""
        from pycotmech.model.from_nnterp import from_nnterp

        model, tokenizer = from_nnterp(wrapped)
        return cls(model, tokenizer, name=name, prepend_bos=prepend_bos, check=check)

    @classmethod
    def from_transformer_lens(
        cls, bridge: Any, *, name: str | None = None, prepend_bos: bool | None = None, check: bool = True
    ) -> Model:
        """Takes the Hugging Face model and the tokenizer of TransformerLens' `TransformerBridge`; its weights are not copied.

        prepend_bos: None: as the bridge does (`cfg.default_prepend_bos`), so that a text becomes the same tokens.
        The bridge stays as it is. What is hooked or replaced on it afterwards is not seen.
        Raises TypeError for a HookedTransformer, which has no Hugging Face model in it; ValueError for processed weights and
        for hooks. Both name `bridge`.
        """
        from pycotmech.model.from_transformer_lens import from_transformer_lens

        model, tokenizer, prepend = from_transformer_lens(bridge)
        return cls(model, tokenizer, name=name, prepend_bos=prepend if prepend_bos is None else prepend_bos, check=check)

    @property
    def cfg(self) -> ModelConfig:
        """n_layers, n_heads, n_key_value_heads, d_model, d_head, d_mlp, d_vocab, n_ctx, dtype."""
        return self.family.cfg

    @property
    def device(self) -> torch.device:
        return self.family.device

    def __repr__(self) -> str:
        c = self.cfg
        return (
            f"Model({self.name}: {c.n_layers} layers x {c.n_heads} heads ({c.n_key_value_heads} key-value), "
            f"d_model {c.d_model}, d_head {c.d_head}, vocabulary {c.d_vocab}, "
            f"{str(c.dtype).removeprefix('torch.')}, {self.device})"
        )

    def described(self) -> Facts:
        c = self.cfg
        keys = "" if c.n_key_value_heads == c.n_heads else f", {c.n_key_value_heads} of keys and values"
        mixture = {} if c.mixture is None else {"experts": f"{c.mixture.n_chosen} of {c.mixture.n_experts} for each token"}
        sizes = {
            "layers": f"{c.n_layers}",
            "heads": f"{c.n_heads} in each layer{keys}; {c.n_layers * c.n_heads:,} in all",
            "d_head": f"{c.d_head}",
            "d_model": f"{c.d_model:,}",
            "d_mlp": f"{c.d_mlp:,}",
            **mixture,
            "vocabulary": f"{c.d_vocab:,} tokens",
            "context": f"{c.n_ctx:,} tokens",
        }
        weights = sum(t.numel() * t.element_size() for t in self.hf.state_dict().values())
        memory = {"weights": f"{weights / 2**30:,.2f} GiB", "kept prefixes": f"{self.prefixes.nbytes / 2**20:,.1f} MiB"}
        bos = {True: "first token of every prompt", False: "not added", None: "as the tokenizer decides"}
        return Facts(
            self.name,
            [
                ("family", f"{c.family} ({type(self.hf).__name__})"),
                ("sizes", sizes),
                ("dtype", str(c.dtype).removeprefix("torch.")),
                ("device", ", ".join(map(str, self.family.devices))),
                ("memory", memory),
                ("tokenizer", type(self.tokenizer).__name__ if self.tokenizer is not None else "none: prompts are token ids"),
                ("BOS", bos[self.prepend_bos]),
                *(("note", note) for note in self.notes),
            ],
            go_on=(("pcm.patch_heads(model, clean, corrupted)", "which heads an answer depends on"),),
        )

    def to_tokens(self, prompt: Tokens, *, argument: str = "tokens") -> Tensor:
        """One prompt as checked token ids [T] on the CPU. A string gets the model's BOS token if its prompts begin with one,
        and no second one if it has it itself, as the text of a chat template does.

        prompt: a string, token ids [T] as a tensor, an array or a list, or what a tokenizer returned for one string.

        Raises ValueError, naming `argument`, for an empty prompt, an id outside the vocabulary, a tensor that is not [T]
        of integers, a prompt longer than the positions of the model (`Family.check_length`), or a string without a tokenizer.
        Warns of other prompts longer than the model's context, and of words of a string that the tokenizer does not know.
        """
        given = self._encoded(prompt, argument) if isinstance(prompt, str) else unpacked(prompt, argument=argument)
        tokens = token_ids(given, argument=argument)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.cfg.d_vocab:
            bad = low if low < 0 else high
            V = self.cfg.d_vocab
            raise ValueError(f"{argument}: token id {bad} is outside the vocabulary of {V} tokens; expected 0..{V - 1}")
        self.family.check_length(len(tokens), argument=argument)
        if len(tokens) > self.cfg.n_ctx:
            warn(
                f"{argument}: the prompt has {len(tokens)} tokens, more than the {self.cfg.n_ctx} that the model was made for; "
                "what it computes beyond them may mean little"
            )
        return tokens

    def _encoded(self, text: str, argument: str) -> list[int]:
        """A string's token ids, with or without BOS as the model's prompts have it."""
        if self.tokenizer is None:
            raise ValueError(f"{argument}: got a string, but the model has no tokenizer; expected token ids [T]")
        try:
            ids = list(self.tokenizer(text)["input_ids"])
        except (TypeError, ValueError) as error:  # a lone surrogate, for instance
            raise ValueError(f"{argument}: the tokenizer cannot encode {text[:80]!r} ({error})") from error
        bos, unknown = self.tokenizer.bos_token_id, getattr(self.tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids and str(self.tokenizer.unk_token) not in text:
            warn(
                f"{argument}: {plural(ids.count(unknown), 'part')} of the prompt, unknown to the tokenizer, became "
                f"{self.tokenizer.unk_token!r}: {text[:80]!r}"
            )
        if bos is None:
            return ids
        if text.startswith(token := self.tokenizer.bos_token):  # as texts of chat templates do
            return ids[1:] if ids[:2] == [bos, bos] and not text.startswith(2 * token) else ids
        if self.prepend_bos is True and ids[:1] != [bos]:
            return [bos, *ids]
        if self.prepend_bos is False and ids[:1] == [bos]:
            return ids[1:]
        return ids

    @overload
    def run(
        self, tokens: Tensor | str, *, capture: Sequence[str] = (), positions: int | Sequence[int] | None = None
    ) -> Activations: ...

    @overload
    def run(
        self, tokens: Tokens | Sequence[Tokens], *, capture: Sequence[str] = (), positions: int | Sequence[int] | None = None
    ) -> Activations | list[Activations]: ...

    def run(
        self,
        tokens: Tokens | Sequence[Tokens],
        *,
        capture: Sequence[str] = (),
        positions: int | Sequence[int] | None = None,
    ) -> Activations | list[Activations]:
        """Runs one forward pass and keeps chosen activations.

        tokens: ids [T] or [B, T] without padding, a string, or a list of prompts of any lengths (then a list is returned).
        capture: sites to keep: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z (or TransformerLens names).
        positions: positions whose logits are kept, negative from the end; None: all.
        Returns `Activations`: .logits [T, V] float32, and by site [L, T, ...] ([B, L, T, ...] for a batch).
        Cost: one forward pass; the unembedding at `positions` only.
        """
        sites = (capture,) if isinstance(capture, str) else tuple(capture)
        self.family.refuse_unsupported()
        given: Any = unpacked(tokens)
        if isinstance(given, Tensor) and given.ndim == 2:
            if not len(given):
                raise ValueError(f"tokens: the batch is empty, got shape {list(given.shape)}; expected [B, T]")
            batch = torch.stack([self.to_tokens(row) for row in given])
            return run(self.family, batch, sites, self._positions(positions, batch.shape[1]))
        if isinstance(given, (list, tuple)) and (not given or not is_prompt(given)):
            if not given:
                raise ValueError("tokens: the list of prompts is empty; expected at least one")
            prompts = [self.to_tokens(prompt, argument=f"tokens[{i}]") for i, prompt in enumerate(given)]
            return [self._run_one(prompt, sites, positions) for prompt in prompts]
        return self._run_one(self.to_tokens(given), sites, positions)

    def _run_one(self, tokens: Tensor, sites: Sequence[str], positions: int | Sequence[int] | None) -> Activations:
        acts = run(self.family, tokens[None], sites, self._positions(positions, len(tokens)))
        return Activations(acts.logits[0], tokens, {name: value[0] for name, value in acts.items()})

    @staticmethod
    def _positions(positions: int | Sequence[int] | None, T: int) -> list[int] | None:
        return None if positions is None else resolve_positions(positions, T)


def _base_of(hf: Any) -> torch.nn.Module:
    """The Hugging Face model in what was given: a PEFT model's base, whose layers carry the adapters; the language model in a
    model of text and images.

    Raises TypeError or ValueError, naming `hf_model`, for what cannot be analysed.
    """
    if isinstance(hf, Model):
        raise TypeError("hf_model: got a pycotmech.Model, which is wrapped already; expected a Hugging Face model (its .hf)")
    if isinstance(hf, str | os.PathLike):
        raise TypeError(f"hf_model: got {hf!r}; expected a loaded model: pcm.Model.from_pretrained({str(hf)!r})")
    if not isinstance(hf, torch.nn.Module):
        raise TypeError(f"hf_model: got {type(hf).__name__}; expected a Hugging Face causal language model")
    hf = _uncompiled(hf)
    adapters = getattr(hf, "peft_config", None)
    if isinstance(adapters, Mapping) and callable(getattr(hf, "get_base_model", None)):
        learned = [name for name, adapter in adapters.items() if getattr(adapter, "is_prompt_learning", False)]
        if learned:
            raise ValueError(
                f"hf_model: the PEFT adapters {', '.join(map(repr, learned))} learn prompts, which lie outside the model and "
                "would be ignored; expected adapters of its layers (LoRA, for instance), or the base model alone"
            )
        hf = _uncompiled(cast(Any, hf).get_base_model())
    hf = text_part(hf)
    if not is_placed(hf) and any(tensor.is_meta for tensor in (*hf.parameters(), *hf.buffers())):
        raise ValueError(
            "hf_model: has tensors on the meta device, which have no values; expected a loaded model (plan_paths takes the "
            "configuration alone)"
        )
    return hf


def _uncompiled(hf: torch.nn.Module) -> torch.nn.Module:
    """The model in what `torch.compile(model)` returned; other models as they are."""
    inner = getattr(hf, "_orig_mod", None)
    return inner if isinstance(inner, torch.nn.Module) else hf


def _checked_bos(prepend_bos: bool | None, tokenizer: Any) -> bool | None:
    if prepend_bos is True and tokenizer is not None and tokenizer.bos_token_id is None:
        raise ValueError("prepend_bos: got True, but the tokenizer has no BOS token; expected None or False")
    return prepend_bos

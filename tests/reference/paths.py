"""Path patching written out: two hooked forward passes of Hugging Face's own model for each path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.reference.parts import head_size, layers_of, projection_of, tap
from tests.reference.truth import hooked, logits_of, ungrouped, z_of

INPUTS = ("q", "k", "v")


class PathTruth:
    """One base and one source prompt. `read` is the position where the metric is read."""

    def __init__(self, hf: nn.Module, base: Tensor, source: Tensor, *, freeze_mlps: bool = False) -> None:
        self.hf, self.base, self.freeze_mlps = hf, base, freeze_mlps
        self.base_z, self.source_z = z_of(hf, base), z_of(hf, source)
        self.base_mlp: list[Tensor] = []

        def record(out: Tensor) -> Tensor:
            self.base_mlp.append(out.clone())
            return out

        with hooked(*[tap(layer, "mlp_out").hook(record) for layer in layers_of(hf)]):
            logits_of(hf, base, keep=1)
        self.one_head_each: nn.Module | None = None

    def first_run(self, sender: tuple[int, int], positions: Sequence[int] | None) -> tuple[Tensor, dict]:
        """Every head has the base's z but the sender. Returns logits [T, V], and (input, layer) -> [T, heads * D]."""
        layer, head = sender
        D = head_size(self.hf)
        arrived: dict[tuple[str, int], Tensor] = {}
        handles = []

        def frozen(l: int):
            z = self.base_z[l].clone()
            if l == layer:
                where = slice(None) if positions is None else list(positions)
                z[where, head] = self.source_z[l][where, head]
            return lambda _module, _args: (z.flatten(1)[None],)

        def seen(input: str, l: int):
            def keep(x: Tensor) -> Tensor:
                arrived[input, l] = x.clone()
                return x

            return keep

        for l, block in enumerate(layers_of(self.hf)):
            handles.append(projection_of(block).register_forward_pre_hook(frozen(l)))
            handles += [tap(block, i).hook(seen(i, l)) for i in INPUTS]
            if self.freeze_mlps:
                handles.append(tap(block, "mlp_out").hook(lambda _x, l=l: self.base_mlp[l]))
        with hooked(*handles):
            logits = logits_of(self.hf, self.base)
        assert arrived["q", 0].shape[1] == D * self.hf.config.num_attention_heads
        return logits, arrived

    def second_run(self, arrived: dict, receiver: tuple[int, int], input: str, per_query_head: bool) -> Tensor:
        """Logits [T, V] with the receiver's q, k or v as it arrived, and nothing else held."""
        layer, head = receiver
        hf, D = self.hf, head_size(self.hf)
        value, group = arrived[input, layer], self.hf.config.num_attention_heads * D // arrived["k", layer].shape[1]
        if input != "q":
            head //= group
        value = value[:, head * D : (head + 1) * D]
        if input != "q" and per_query_head and group > 1:
            self.one_head_each = self.one_head_each or ungrouped(hf)
            hf, head = self.one_head_each, receiver[1]

        def replaced(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, head * D : (head + 1) * D] = value
            return x

        with hooked(tap(layers_of(hf)[layer], input).hook(replaced)):
            return logits_of(hf, self.base)

    def effects(
        self,
        senders: Sequence[tuple[int, int]],
        receivers: Sequence[tuple[int, int]] | str,
        inputs: Sequence[str],
        metric: Callable[[Tensor], float],
        *,
        positions: Sequence[int] | None = None,
        read: int = -1,
        per_query_head: bool = True,
    ) -> Tensor:
        """Changes of the metric, float64: [senders] to "logits", else [inputs, senders, receivers]; one path at a time."""
        zero = metric(logits_of(self.hf, self.base)[read])
        if receivers == "logits":
            return torch.tensor([metric(self.first_run(s, positions)[0][read]) - zero for s in senders], dtype=torch.float64)
        out = torch.zeros(len(inputs), len(senders), len(receivers), dtype=torch.float64)
        for s, sender in enumerate(senders):
            _, arrived = self.first_run(sender, positions)
            for i, input in enumerate(inputs):
                for r, receiver in enumerate(receivers):
                    logits = self.second_run(arrived, receiver, input, per_query_head)
                    out[i, s, r] = metric(logits[read]) - zero
        return out

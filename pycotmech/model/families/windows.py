"""What families share whose configuration gives each layer its kind, with a sliding window or without (`layer_types`)."""

from __future__ import annotations

from pycotmech.model.families.llama import LlamaFamily


class WindowsByKind(LlamaFamily):
    """A Llama in which the layers of kind "sliding_attention" have the configuration's `sliding_window`."""

    reads = LlamaFamily.reads | {"layer_types", "sliding_window"}

    def window(self, l: int) -> int:
        config = self.hf.config
        return (config.sliding_window or 0) if config.layer_types[l] == "sliding_attention" else 0

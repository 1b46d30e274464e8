"""pycotmech: how a language model reasons step by step, taken apart exactly and fast."""

from pycotmech import _layout  # noqa: F401

__version__ = "0.1.0"

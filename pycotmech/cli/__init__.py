"""The shell: one file per command."""

from pycotmech.cli.app import main

__all__ = ["main"]

"""Hooks into Hugging Face models. Nothing here imports transformers before ``attach`` is called."""

from .handle import Handle, attach

__all__ = ["Handle", "attach"]

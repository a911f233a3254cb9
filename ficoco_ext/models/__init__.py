"""Hooks into Hugging Face models. Nothing here imports transformers before ``attach`` is called."""

from .attach import attach
from .handle import Handle

__all__ = ["Handle", "attach"]

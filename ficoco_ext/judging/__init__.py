"""Whether an answer is right: text as words and numbers, and the rules that compare them. Independent of models."""

from .rules import contained, exact
from .text import Reading, Token, read

__all__ = ["Reading", "Token", "contained", "exact", "read"]

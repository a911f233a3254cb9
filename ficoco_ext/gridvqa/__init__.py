"""Grid VQA: procedural pictures with questions and answers, made of what installed packages ship. No download."""

from .dataset import GridVQA, Row
from .vocabulary import KINDS

__all__ = ["KINDS", "GridVQA", "Row"]

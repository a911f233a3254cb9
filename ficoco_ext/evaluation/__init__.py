"""Evaluation: the same questions with and without reduction, judged, with uncertainty and cost. Nothing is printed."""

from .asking import JUDGES, Asking, Prompts, answers
from .data import BadRow, Item, Questions, questions, questions_of_file
from .goal import EQUAL, Goal
from .results import Results
from .runner import evaluate
from .settings import Setting, settings_of
from .statistics import Bootstrap, Estimate, Spread, Tally
from .summary import Line, Summary

__all__ = [
    "EQUAL",
    "JUDGES",
    "Asking",
    "BadRow",
    "Bootstrap",
    "Estimate",
    "Goal",
    "Item",
    "Line",
    "Prompts",
    "Questions",
    "Results",
    "Setting",
    "Spread",
    "Summary",
    "Tally",
    "answers",
    "evaluate",
    "questions",
    "questions_of_file",
    "settings_of",
]

"""Methods as compositions of stages, and the registry that names them.

Every module of this package is imported, so a method that one of them registers is known by being there.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import AnyMethod, FeatureMethod, LanguageMethod, LayerMethod, Projected, TowerMethod, Words
from .combined import Combined
from .decoder_method import DecoderMethod
from .description import Description, describe
from .divprune import divprune
from .downsample import Downsample, downsample
from .evit import evit
from .fastv import fastv
from .ficoco_l import ficoco_l
from .ficoco_v import ficoco_v
from .ficoco_vl import ficoco_vl
from .method import Method, square_grid
from .pool import pool
from .projector_method import ProjectorMethod
from .prumerge import prumerge, prumerge_plus
from .prune_then_merge import prune_then_merge
from .pyramiddrop import pyramiddrop
from .random import random
from .registry import (
    METHODS,
    distinct,
    get_method,
    hyperparameters,
    is_name,
    joined_names,
    load_plugins,
    part_after_projector,
    register,
)
from .scope import scope
from .split import Split
from .staged import Staged
from .stride import stride
from .tome import tome
from .topk import topk

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "METHODS",
    "AnyMethod",
    "Combined",
    "DecoderMethod",
    "Description",
    "Downsample",
    "FeatureMethod",
    "LanguageMethod",
    "LayerMethod",
    "Method",
    "Projected",
    "ProjectorMethod",
    "Split",
    "Staged",
    "TowerMethod",
    "Words",
    "describe",
    "distinct",
    "divprune",
    "downsample",
    "evit",
    "fastv",
    "ficoco_l",
    "ficoco_v",
    "ficoco_vl",
    "get_method",
    "hyperparameters",
    "is_name",
    "joined_names",
    "load_plugins",
    "part_after_projector",
    "pool",
    "prumerge",
    "prumerge_plus",
    "prune_then_merge",
    "pyramiddrop",
    "random",
    "register",
    "scope",
    "square_grid",
    "stride",
    "tome",
    "topk",
]

load_plugins()  # last: they import this package

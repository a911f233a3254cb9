"""Tests of transformers that end otherwise on an attached model than on the unmodified one, each with its reason."""

from foreign.outcomes import Expected

EXPECTED: tuple[Expected, ...] = ()

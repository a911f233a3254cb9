"""Faults of records of pictures of several crops."""

from __future__ import annotations

from mutations import Mutation

_RECORDS = "python_tests/models/test_crop_records.py::"
_ROWS = _RECORDS + "test_each_crop_keeps_and_holds_what_its_row_of_the_tower_says"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/models/crop_records.py",
        old="into.append(torch.where(targets < 0, -1, kept[targets]))",
        new="into.append(targets)",
        tests=(_ROWS,),
        why="What merged seems to have gone to other patches.",
    ),
    Mutation(
        file="ficoco_ext/models/crop_records.py",
        old="leaving = own[one.sources[0]] >= 0",
        new="leaving = own[one.sources[0]] >= -1",
        tests=(_ROWS,),
        why="Padding that left counts as a patch of the picture.",
    ),
    Mutation(
        file="ficoco_ext/models/crop_records.py",
        old="source_map=position[holder][None],",
        new="source_map=holder[None],",
        tests=(_ROWS,),
        why="Holders are patches where positions among the survivors are meant.",
    ),
    Mutation(
        file="ficoco_ext/models/crop_records.py",
        old="positions = first + (ranks[kept] >= 0).nonzero()[:, 0]",
        new="positions = first + (ranks[kept] >= -1).nonzero()[:, 0]",
        tests=(_RECORDS + "test_the_language_model_has_its_own_part",),
        why="Line ends are taken for patches of the picture.",
    ),
    Mutation(
        file="ficoco_ext/models/crop_records.py",
        old="ids, order = torch.cat(left).sort()",
        new="ids, order = torch.cat(left), torch.arange(len(torch.cat(left)))",
        tests=(_ROWS,),
        why="Patches that are left are in the order of the tower, not of the picture.",
    ),
]

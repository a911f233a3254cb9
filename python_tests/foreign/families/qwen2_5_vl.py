"""Qwen2.5-VL: as Qwen2-VL, with windows in the vision tower."""

import unittest

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from foreign.families.common import FamilyTest
from foreign.families.qwen2_vl import Qwen2VLTester


class Qwen25VLTester(Qwen2VLTester):
    config_class = Qwen2_5_VLConfig
    vision_config = {  # noqa: RUF012
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 4,
        "patch_size": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 8,
        "fullatt_block_indexes": [1],
    }


class Qwen25VLTest(FamilyTest, unittest.TestCase):
    all_model_classes = (Qwen2_5_VLForConditionalGeneration,)
    model_tester_class = Qwen25VLTester

"""Qwen2-VL: pictures of 8 x 8 patches, 16 visual tokens."""

import unittest

import torch
from tests.test_modeling_common import floats_tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from foreign.families.common import IMAGE, TEXT, VIDEO, VISION_END, VISION_START, FamilyTest, Tester

ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


class Qwen2VLTester(Tester):
    text_config = TEXT | {"rope_parameters": ROPE}
    vision_config = {  # noqa: RUF012  # as transformers' tests read it: a plain attribute
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "num_heads": 4,
        "patch_size": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config_class, words = Qwen2VLConfig, 7
    patches = 8, 8  # lines and columns

    def get_config(self):
        return self.config_class(
            text_config=self.text_config,
            vision_config=self.vision_config,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )

    def pictures(self, config):
        height, width = self.patches
        vision = config.vision_config
        values = self.num_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": floats_tensor([self.batch_size * height * width, values]),
            "image_grid_thw": torch.tensor([[1, height, width]] * self.batch_size),
        }

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"][:, self.first - 1] = VISION_START
        inputs["input_ids"][:, self.first + self.image_tokens] = VISION_END
        return config, inputs | {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).int()}


class Qwen2VLTest(FamilyTest, unittest.TestCase):
    all_model_classes = (Qwen2VLForConditionalGeneration,)
    model_tester_class = Qwen2VLTester

"""LLaVA: a CLIP tower of 16 patches and two Llama layers."""

import unittest

from tests.test_modeling_common import floats_tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from foreign.families.common import CLIP, IMAGE, TEXT, FamilyTest, Tester


class LlavaTester(Tester):
    text_config = TEXT | {"model_type": "llama"}
    vision_config = CLIP | {"model_type": "clip_vision_model"}

    def get_config(self):
        return LlavaConfig(
            text_config=self.text_config,
            vision_config=self.vision_config,
            image_token_index=IMAGE,
            image_seq_length=self.image_tokens,
            vision_feature_layer=-1,
        )

    def pictures(self, config):
        return {"pixel_values": floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])}


class LlavaTest(FamilyTest, unittest.TestCase):
    additional_model_inputs = ("pixel_values",)
    all_model_classes = (LlavaForConditionalGeneration,)
    model_tester_class = LlavaTester

"""LLaVA-NeXT: pictures of one crop, which has 16 patches and a line end after each of four lines, and the whole."""

import unittest

import torch
from tests.test_modeling_common import floats_tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from foreign.families.common import CLIP, IMAGE, TEXT, FamilyTest, Tester


class LlavaNextTester(Tester):
    text_config = TEXT | {"model_type": "llama"}
    vision_config = CLIP | {"model_type": "clip_vision_model"}
    image_tokens = 16 + 16 + 4

    def get_config(self):
        return LlavaNextConfig(
            text_config=self.text_config,
            vision_config=self.vision_config,
            image_token_index=IMAGE,
            image_seq_length=self.image_tokens,
            image_grid_pinpoints=[[self.image_size, self.image_size]],
            vision_feature_layer=-1,
        )

    def pictures(self, config):
        shape = [self.batch_size, 2, self.num_channels, self.image_size, self.image_size]
        sizes = torch.full((self.batch_size, 2), self.image_size)
        return {"pixel_values": floats_tensor(shape), "image_sizes": sizes}


class LlavaNextTest(FamilyTest, unittest.TestCase):
    additional_model_inputs = ("pixel_values", "image_sizes")
    skip_test_image_features_output_shape = True  # it counts pictures, and these have two crops each
    all_model_classes = (LlavaNextForConditionalGeneration,)
    model_tester_class = LlavaNextTester

"""Features in what encoders return: read, and written back in the form that they had."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ficoco_ext.models.modalities import IMAGES, VIDEOS, Encoded, read, written

WITH_PLANES = IMAGES._replace(planes=("deepstack_features",))
A, B = torch.arange(6.0).view(3, 2), torch.arange(6.0, 10).view(2, 2)  # pictures of 3 and of 2 tokens


def encoder_output(held, **more):
    return SimpleNamespace(pooler_output=held, **more)


def values(tensors):
    return [one.tolist() for one in tensors]


@pytest.mark.parametrize(
    ("held", "counts"),
    [
        ([A, B], (3, 2)),
        ((A, B), (3, 2)),
        (torch.stack([A, A]), (3, 3)),  # (I, n, D)
        (A, (3,)),  # (n, D): one picture
        ([A[None], torch.stack([B, B])], (3, 4)),  # an entry of several crops
    ],
)
def test_every_entry_is_a_picture(held, counts):
    found = read(encoder_output(held), IMAGES)
    assert (found.counts, found.entries, found.planes) == (counts, (1,) * len(counts), ())
    assert all(one.shape == (count, 2) for one, count in zip(found.features, counts, strict=True))


def test_an_entry_of_several_pictures_is_split_by_the_unit():
    four = torch.arange(8.0).view(4, 2)
    found = read(encoder_output([four, B]), IMAGES, unit=2)
    assert (found.counts, found.entries) == ((2, 2, 2), (2, 1))
    assert values(found.features) == [four[:2].tolist(), four[2:].tolist(), B.tolist()]
    odd = read(encoder_output([A, B]), IMAGES, unit=2)  # 3 is no multiple of 2, so that entry is one picture
    assert (odd.counts, odd.entries) == ((3, 2), (1, 1))


def test_planes_are_split_like_features():
    """A plane is a list like the features, or one tensor of all tokens."""
    second = torch.cat([A, B]) + 100
    found = read(encoder_output([A, B], deepstack_features=[[A + 50, B + 50], second]), WITH_PLANES)
    assert [values(plane) for plane in found.planes] == [values([A + 50, B + 50]), values([A + 100, B + 100])]
    assert read(encoder_output([A, B]), WITH_PLANES).planes == ()
    assert read(encoder_output([A, B], deepstack_features=None), WITH_PLANES).planes == ()


def test_what_is_written_has_the_form_that_it_had():
    less = Encoded((A[:1], B[:1]), (), (1, 1))
    for held in ([A, B], (A, B)):
        output = encoder_output(held, other=5)
        made = written(output, IMAGES, less)
        assert type(made.pooler_output) is type(held) and values(made.pooler_output) == values([A[:1], B[:1]])
        assert made.other == 5 and output.pooler_output is held  # the output itself is as it was


def test_one_tensor_stays_one_if_pictures_are_alike():
    stacked = encoder_output(torch.stack([A, A + 9]))
    alike = written(stacked, IMAGES, Encoded((A[:2], B), (), (1, 1))).pooler_output
    assert alike.shape == (2, 2, 2) and values(alike) == values([A[:2], B])
    unlike = written(stacked, IMAGES, Encoded((A[:1], B), (), (1, 1))).pooler_output
    assert unlike.tolist() == torch.cat([A[:1], B]).tolist()
    flat = written(encoder_output(torch.cat([A, A])), IMAGES, Encoded((A[:2], B), (), (1, 1))).pooler_output
    assert flat.tolist() == torch.cat([A[:2], B]).tolist()


def test_pictures_of_one_entry_are_joined_again():
    four = torch.arange(8.0).view(4, 2)
    made = written(encoder_output([four, B]), IMAGES, Encoded((four[:1], four[3:], B[:1]), (), (2, 1))).pooler_output
    assert values(made) == [four[[0, 3]].tolist(), B[:1].tolist()]


def test_planes_are_written_in_their_own_form():
    planes = [[A + 50, B + 50], torch.cat([A, B]) + 100]
    output = encoder_output([A, B], deepstack_features=planes)
    less = Encoded((A[:1], B[:1]), ((A[:1] + 50, B[:1] + 50), (A[:1] + 100, B[:1] + 100)), (1, 1))
    first, second = written(output, WITH_PLANES, less).deepstack_features
    assert values(first) == values([A[:1] + 50, B[:1] + 50])
    assert second.tolist() == torch.cat([A[:1] + 100, B[:1] + 100]).tolist()
    assert output.deepstack_features is planes and len(planes[1]) == 5
    assert written(encoder_output([A], deepstack_features=None), WITH_PLANES, less).deepstack_features is None


def test_an_output_of_transformers_is_written_in_both_its_ways():
    """As an attribute, and as an item."""
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=[A, B])
    made = written(output, IMAGES, Encoded((A[:1], B[:1]), (), (1, 1)))
    assert made.pooler_output is made["pooler_output"] and made.to_tuple()[1] is made.pooler_output
    assert values(made.pooler_output) == values([A[:1], B[:1]]) and values(output["pooler_output"]) == values([A, B])


def test_pixels_by_either_of_two_names():
    pictures = IMAGES._replace(other_pixels="pixel_values_images")
    assert IMAGES.pixels_of({"pixel_values": 1, "pixel_values_images": 2}) == 1
    assert IMAGES.pixels_of({"pixel_values_images": 2}) is None
    assert pictures.pixels_of({"pixel_values": None, "pixel_values_images": 2}) == 2
    assert pictures.pixels_of({"pixel_values": 1, "pixel_values_images": 2}) == 1
    assert VIDEOS.pixels_of({"pixel_values_videos": 3}) == 3

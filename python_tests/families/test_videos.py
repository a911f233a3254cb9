"""VidCom2 and FlashVID in every family that takes videos: frames are those of the video, answers of a hand cut."""

from __future__ import annotations

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, features, kept_of, worst
from helpers.tiny_processors import Video
from helpers.tiny_prompts import one_video, pictures_and_videos, prompt, words

import ficoco_ext
from ficoco_ext.stages import SceneTrees

pytest.importorskip("transformers")

DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 3}
TOGETHER = tuple(family for family in WITH_VIDEO if family.name != "video-llava")  # it encodes frame by frame
WHOLE = {"llava-onevision": Video(4, 1, 1)}  # in its own unit; others take frames of any size
every = pytest.mark.parametrize("family", WITH_VIDEO, ids=str)


def long_video(family):
    """One row with a video of four frames."""
    return prompt(family, [[*words(3), WHOLE.get(family.name, Video(4, 4, 8)), *words(5, 3)]])


@pytest.mark.parametrize("tokens", [3, 4, 7, 10])
@pytest.mark.parametrize("family", TOGETHER, ids=str)
@torch.no_grad()
def test_what_is_kept_follows_from_the_frames(family, tokens):
    """Line ends do not count and stay; the rest is what the function for features picks of a video of four frames."""
    full = long_video(family)
    [visual] = full.visuals
    made = features(untouched_model(family.name), full)["video"].projected
    free = torch.tensor([index for index in range(len(visual.columns)) if index not in visual.line_ends])
    wanted = ficoco_ext.select(made[None, free], tokens, method="vidcom2", frames=4)[0]
    assert len(set((wanted // (len(free) // 4)).tolist())) == min(tokens, 4)
    model = shared_model(family.name)
    with ficoco_ext.attach(model, "vidcom2", tokens=tokens) as handle:
        model(**full.inputs)
        [kept] = kept_of(full, handle.projections)
    assert kept.tolist() == sorted([*free[wanted].tolist(), *visual.line_ends])


@torch.no_grad()
def test_each_frame_of_video_llava_is_a_picture():
    """Its encoder returns frames, and nothing says which are one video."""
    family, full = BY_NAME["video-llava"], one_video(BY_NAME["video-llava"])
    made = features(untouched_model(family.name), full)["video"].projected.view(3, 17, -1)
    model = shared_model(family.name)
    with ficoco_ext.attach(model, "vidcom2", tokens=5) as handle:
        model(**full.inputs)
        kept = torch.stack([one.kept for one in handle.projections])
    assert torch.equal(kept, ficoco_ext.select(made, 5, method="vidcom2"))


@pytest.mark.parametrize("family", TOGETHER, ids=str)
@torch.no_grad()
def test_flashvid_sees_frames_and_saliency(family, monkeypatch):
    full, model, given, plain = long_video(family), shared_model(family.name), [], SceneTrees.trees
    [visual] = full.visuals
    monkeypatch.setattr(SceneTrees, "trees", lambda self, seen, count: given.append(seen) or plain(self, seen, count))
    with ficoco_ext.attach(model, "flashvid", tokens=10) as handle:
        model(**full.inputs)
        [kept] = kept_of(full, handle.projections)
    monkeypatch.undo()
    seen, made = given[0], features(untouched_model(family.name), full)["video"].projected
    free = torch.tensor([index for index in range(len(visual.columns)) if index not in visual.line_ends])
    assert seen.frames == 4 and torch.equal(seen.features[0], made[free]) and float(seen.saliency.min()) > 0
    wanted = ficoco_ext.select(made[None, free], 10, method="flashvid", saliency=seen.saliency, frames=4)[0]
    assert kept.tolist() == sorted([*free[wanted].tolist(), *visual.line_ends])


@every
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", ["vidcom2", "flashvid"])
@torch.no_grad()
def test_forward_is_the_hand_cut(family, method, merge):
    """Merged features are others, of the same tokens."""
    model, full = shared_model(family.name), pictures_and_videos(family)
    with ficoco_ext.attach(model, method, keep_ratio=0.5, merge=merge) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
    assert sum(map(len, kept)) < sum(len(one.columns) for one in full.visuals)
    hand = cut(untouched_model(family.name), full, kept)
    assert got.shape[1] == hand.columns.shape[1]
    assert (worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5) is not merge


@every
@torch.no_grad()
def test_generate_is_the_hand_cut_without_a_cache(family):
    model, full = shared_model(family.name), pictures_and_videos(family)
    with ficoco_ext.attach(model, "vidcom2", keep_ratio=0.5) as handle:
        out = model.generate(**full.inputs, **DETAILS)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    new = out.sequences[:, full.ids.shape[1] :]
    logits = hand.logits(untouched_model(family.name), new[:, :-1])[:, -3:]
    assert max(float((logits[:, step] - one).abs().max()) for step, one in enumerate(out.logits)) < 1e-5


@every
@torch.no_grad()
def test_a_video_in_a_batch_keeps_what_it_keeps_alone(family):
    """Two videos of one call, as long as each other in some families and not in others."""
    model = shared_model(family.name)
    rows = [[*words(3), family.videos[0], *words(4, 3)], [*words(1, 8), family.videos[1], *words(9, 12)]]
    both, first = prompt(family, rows), prompt(family, rows[:1])  # its pixels are the first that are drawn
    with ficoco_ext.attach(model, "vidcom2", keep_ratio=0.4) as handle:
        model(**both.inputs)
        together = kept_of(both, handle.projections)
        model(**first.inputs)
        assert torch.equal(kept_of(first, handle.projections)[0], together[0])

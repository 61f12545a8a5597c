"""The corpus: what training reads is what was recorded."""

from __future__ import annotations

import pytest
import torch
from rollout_pool import BLOCKS, CAR, RAIN, SILENT, SIZE, WALKS

from train.data.corpus import Corpus
from train.data.shards import HELD_OUT, Shard, find_shards
from train.evaluation.sheet import to_video
from world_model.dit import DiT
from world_model.rollout import commanded_motions
from world_model.text import build_text_encoder


def test_corpus_gives_what_is_on_disk(corpus, config, data_folder, frozen_vae):
    shard = Shard(find_shards(data_folder)[0])
    assert len(corpus) == WALKS and corpus.blocks == BLOCKS
    walk = shard.trajectory(RAIN)
    video = to_video(walk.frames)
    for block in (0, 9):
        with torch.no_grad():
            latents = frozen_vae.encode(video[None, :, 4 * block : 4 * block + 4])[0]
        torch.testing.assert_close(corpus.block(RAIN, block), latents, atol=5e-3, rtol=2e-3)  # float16 on disk
        assert corpus.action(RAIN, block).index == walk.action[block]
        assert (corpus.frames(RAIN, block, 2) == walk.frames[4 * block : 4 * block + 8]).all()
    assert torch.equal(corpus.picture(RAIN, 9), video[:, 35])
    assert corpus.direction(RAIN, 9) == (float(walk.yaw[35]), float(walk.pitch[35]))
    assert corpus.position(RAIN, 9) == (float(walk.position[35, 0]), float(walk.position[35, 1]))
    assert torch.equal(corpus.picture(RAIN, 0), video[:, 0])  # the picture before a walk is not stored
    assert corpus.info(RAIN) == walk.info


def test_texts_are_encoded_once_and_nothing_is_zeros(corpus, config):
    text = corpus.info(RAIN).event_at(7)
    assert text and corpus.info(RAIN).event_at(6) is None
    encoded = build_text_encoder(config.text).encode(text, config.text.event_tokens)
    torch.testing.assert_close(corpus.text(text), encoded, atol=1e-2, rtol=2e-3)
    assert [corpus.info(CAR).event_at(block) is None for block in (9, 10, 13, 14)] == [True, False, False, True]
    assert not corpus.text(None).any() and not corpus.text("").any()
    assert corpus.text(corpus.info(SILENT).caption).any()


def test_motion_is_the_true_cameras(corpus, config, data_folder):
    """Of several walks at once, from where the block before ended; where nothing stood in the way it is the commanded one."""
    walks, blocks = [SILENT, RAIN, CAR, RAIN], [3, 0, 12, 9]
    motion = corpus.motion(walks, blocks)
    shard, free = Shard(find_shards(data_folder)[0]), 0
    for row, (number, block) in enumerate(zip(walks, blocks)):
        walk, before = shard.trajectory(number), max(4 * block - 1, 0)
        now = slice(4 * block, 4 * block + 4)
        assert motion.yaw[row].tolist() == walk.yaw[now].tolist()
        assert motion.pitch[row].tolist() == walk.pitch[now].tolist()
        moved = torch.from_numpy(walk.position[now]).double() - torch.from_numpy(walk.position[before]).double()
        assert torch.equal(motion.displacement[row], moved)
        if block and not walk.blocked[block]:
            angles = (torch.tensor([angle[before]]).double() for angle in (walk.yaw, walk.pitch))
            commanded = commanded_motions(config, [corpus.action(number, block)], *angles)
            torch.testing.assert_close(motion.displacement[row], commanded.displacement[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(motion.yaw[row], commanded.yaw[0], atol=1e-5, rtol=0)
            free += 1
    assert free
    assert motion.displacement.dtype == motion.yaw.dtype == torch.float64


def test_prior_deviation_is_of_latents_and_of_the_warped_frames_error(corpus, config, frozen_vae):
    """The warped frame is worth having: visible tokens are nearer to it than to zero. First row against plain numpy."""
    dit = DiT(config)
    torch.nn.init.zeros_(dit.priors[0].depth.head.weight)  # nothing but the ground
    everywhere, seen = corpus.prior_deviation(dit.priors[0], frozen_vae)
    latents = corpus.latents[HELD_OUT:, :, SIZE:].astype("float64")  # a walk's first block has no warped frame
    expected = (latents**2).mean(axis=(0, 2, 3, 4)) ** 0.5
    torch.testing.assert_close(everywhere.double(), torch.from_numpy(expected), atol=1e-3, rtol=1e-3)
    assert (seen > 0).all() and seen.square().sum() < 0.7 * everywhere.square().sum()


def test_a_folder_that_was_never_encoded_is_refused(config, tmp_path):
    with pytest.raises(FileNotFoundError):
        Corpus(config, tmp_path)
    (tmp_path / "shard_00000.safetensors").touch()
    (tmp_path / "shard_00000.json").touch()
    with pytest.raises(FileNotFoundError, match=r"python -m train\.data debug encode"):
        Corpus(config, tmp_path)

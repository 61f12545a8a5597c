"""Clips streamed as training data: the same to the pool of worlds as shards, without their memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import with_dit

from train import foundation
from train.data import sekai
from train.data.clips import Clips, open_corpus
from train.data.corpus import Corpus
from train.data.labels import ClipError
from train.data.latents import LatentsOnly, encode_walk
from train.data.shards import Header, Trajectory, TrajectoryInfo
from train.data.video import write_video
from train.engine.optimization import Optimization
from train.engine.pool import Pool, PoolSettings
from train.foundation import SelfForcing, Settings
from world_model.actions import Action
from world_model.camera import pose_matrix
from world_model.config import ModelConfig
from world_model.rollout import append_and_decode, encode_conditions, generator
from world_model.text import Conditioning

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

BLOCKS = 5  # of the clips written here


@pytest.fixture(scope="module")
def bare(config) -> ModelConfig:
    return with_dit(replace(config, priors=()), prediction="velocity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bare) -> Path:
    """Five clips of five blocks, one of eight, and one that is shorter than a block."""
    root = tmp_path_factory.mktemp("clips")
    size = bare.frames_per_block
    for number, (keys, arrows, blocks) in enumerate(
        [("W", "", 5), ("W", "←", 5), ("S", "", 5), ("W+A", "", 1), ("", "→", 8), ("D", "", 5), ("A", "↑", 5)]
    ):
        header = Header(bare.name, bare.height, bare.width, bare.fps, size, blocks, 0, {})
        walk = _walk(Action.from_keys(keys, arrows), blocks, size, number)
        (video,) = sekai.write_walk(root, f"w{number}", walk, header, bare.camera)
        if blocks == 1:
            write_video(video, walk.frames[:-1], bare.fps)
            video.with_suffix(".npy").unlink()
    return root


def _walk(action: Action, blocks: int, size: int, seed: int) -> Trajectory:
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (blocks * size, 1, 1, 3)).repeat(32, axis=1).repeat(48, axis=2).astype(np.uint8)
    angles = np.linspace(0.1 * seed, 0.1 * seed + 0.5, blocks * size, dtype=np.float32)
    return Trajectory(
        colours,
        np.full(blocks, action.index, np.uint8),
        angles,
        angles * 0.1,
        np.zeros((blocks * size, 2), np.float32),
        np.zeros(blocks, np.uint8),
        TrajectoryInfo(f"Street number {seed}.", ((0, "rain sets in", "rain"),) if seed == 2 else ()),
    )


@pytest.fixture
def clips(bare, folder, frozen_vae) -> Clips:
    return Clips(bare, folder, frozen_vae)


def test_a_clip_is_what_its_files_say(clips, bare, frozen_vae):
    video = next(v for v in sekai.find_clips(clips._videos[0].parents[1]) if v.stem.startswith("w2"))
    number = clips._videos.index(video)
    header = Header("debug", 32, 48, 8, bare.frames_per_block, 5, 0, {})
    walk = sekai.walks_of(sekai.read_clip(video), header, bare.camera)[0]
    latents = torch.from_numpy(encode_walk(frozen_vae, walk)).float()
    size, frames = bare.block_latents, bare.frames_per_block
    for block in range(5):
        assert torch.equal(clips.block(number, block), latents[:, block * size : (block + 1) * size])
        shown = walk.frames[max(block * frames - 1, 0)]
        np.testing.assert_allclose(clips.picture(number, block).permute(1, 2, 0), shown / 127.5 - 1, atol=1e-6)
        assert clips.direction(number, block)[0] == pytest.approx(float(walk.yaw[max(block * frames - 1, 0)]))
        assert clips.action(number, block) == Action.from_keys("S")
    np.testing.assert_array_equal(clips.frames(number, 1, 2), walk.frames[frames : 3 * frames])
    assert clips.info(number).caption == "Street number 2." and clips.info(number).event_at(3) == "rain sets in"
    assert clips.blocks_of(number) == 5


def test_the_camera_of_a_clip_moved_as_its_poses_say(clips, bare):
    """As of a corpus of shards: where a block's picture was taken, and how the camera truly moved in it."""
    header = Header("debug", 32, 48, 8, bare.frames_per_block, 4, 0, {})
    videos = [next(i for i, v in enumerate(clips._videos) if v.stem.startswith(name)) for name in ("w1", "w5")]
    walks = [sekai.walks_of(sekai.read_clip(clips._videos[i]), header, bare.camera)[0] for i in videos]
    frames = bare.frames_per_block
    for block in range(4):
        before, now = max(block * frames - 1, 0), slice(block * frames, (block + 1) * frames)
        motion = clips.motion(videos, [block, block])
        for row, (number, walk) in enumerate(zip(videos, walks)):
            assert clips.position(number, block) == pytest.approx(tuple(walk.position[before].tolist()))
            moved = walk.position[now].astype(float) - walk.position[before]
            np.testing.assert_allclose(motion.displacement[row], moved, atol=1e-5)
            np.testing.assert_allclose(motion.yaw[row], walk.yaw[now], atol=1e-6)
            np.testing.assert_allclose(motion.pitch[row], walk.pitch[now], atol=1e-6)


def test_memory_is_bounded_and_bad_clips_are_passed_over(bare, folder, frozen_vae, capsys):
    one = Clips(bare, folder, frozen_vae)
    one.block(0, 0)
    clips = Clips(bare, folder, frozen_vae, kept=int(2.5 * next(iter(one._read.values())).nbytes))
    short = next(i for i, v in enumerate(clips._videos) if v.stem.startswith("w3"))
    following = (short + 1) % len(clips)
    assert torch.equal(clips.block(short, 0), clips.block(following, 0))
    assert clips.action(short, 0) == clips.action(following, 0)
    assert capsys.readouterr().out.count("fewer than a block needs") == 1  # told once
    for walk in range(len(clips)):
        clips.block(walk, 0)
    assert len(clips._read) == 2


def test_clips_are_as_long_as_they_are_and_worlds_walk_them_to_the_end(clips, bare, frozen_vae, make_dit):
    """A world that begins in a clip of eight blocks lives until its last one, and not a block longer."""
    long = next(i for i, v in enumerate(clips._videos) if v.stem.startswith("w4"))
    assert sorted(clips.blocks_of(walk) for walk in range(len(clips))) == [5, 5, 5, 5, 5, 5, 8]
    assert clips.block(long, 7).shape[1] == bare.block_latents
    clips._videos, clips._order = [clips._videos[clips._order[long]]], [0]
    clips._read.clear()
    alone = PoolSettings(1, 100, text_start=0.0)
    dit, pool = make_dit(bare).requires_grad_(False), Pool(clips, Conditioning(bare.text), alone, 0)
    ends = set()
    for step in range(60):
        batch = pool.sample(dit, frozen_vae, 1, 0.0, step)
        entry = pool.entries[0]
        assert torch.equal(batch.truth[0], clips.block(0, entry.block))
        _, block = encode_conditions(dit, frozen_vae, batch.worlds, batch.motion, batch.context, batch.pooled)
        after, _ = append_and_decode(dit, frozen_vae, block, batch.truth, [generator("draws", step)])
        pool.add(batch, after, block.history(batch.truth))
        if pool.entries[0] is None:
            ends.add(entry.block)
    assert max(ends) == 7


def test_keys_and_events_come_from_stretches_of_the_text(bare, folder, tmp_path):
    video = next(v for v in sekai.find_clips(folder) if v.stem.startswith("w4"))
    clip = tmp_path / "any" / "clip.mp4"
    clip.parent.mkdir()
    shutil.copy(video, clip)
    assert video.with_suffix(".npy").is_file() and not clip.with_suffix(".npy").is_file()
    header = Header("debug", 32, 48, 8, bare.frames_per_block, 8, 0, {})
    label = clip.with_suffix(".txt")
    label.write_text(
        "Keys: W\nMouse: ·\nKeys 9-17: D\nMouse 13-32: →\nEvent 17-24: a flood comes\nCaption: A street.\n"
    )
    (walk,) = sekai.walks_of(sekai.read_clip(clip), header, bare.camera)
    said = [Action.from_index(index) for index in walk.action]
    assert [a.keys for a in said] == ["W", "W", "D", "D", "W", "W", "W", "W"]
    assert [a.arrows for a in said] == ["", "", "", "→", "→", "→", "→", "→"]
    assert [walk.info.event_at(block) for block in range(8)] == [None] * 4 + ["a flood comes"] * 2 + [None] * 2
    assert walk.info.caption == "A street."
    assert (walk.yaw[:12] == 0).all() and (
        np.diff(walk.yaw[12:]) > 0
    ).all()  # the commanded motion, from block to block
    for text, message in (
        ("Keys 9-5: W\n", "the first before the last"),
        ("Keys 1-8: W\nKeys 5-9: S\n", "overlap at frame 5"),
    ):
        label.write_text(text)
        with pytest.raises(ClipError, match=message):
            sekai.read_clip(clip)


def test_poses_tell_the_keys_block_by_block_where_nothing_else_does(bare, folder, tmp_path):
    video = next(v for v in sekai.find_clips(folder) if v.stem.startswith("w4"))
    clip = tmp_path / "clip.mp4"
    shutil.copy(video, clip)
    ahead = np.concatenate([np.arange(16), np.full(16, 15)])  # forward for four blocks, then still
    np.save(clip.with_suffix(".npy"), [pose_matrix(0.0, float(z), 0.0, 0.0, 1.6) for z in ahead])
    header = Header("debug", 32, 48, 8, bare.frames_per_block, 8, 0, {})
    (walk,) = sekai.walks_of(sekai.read_clip(clip), header, bare.camera)
    assert [Action.from_index(index).keys for index in walk.action] == ["W"] * 4 + [""] * 4


def test_a_folder_of_useless_clips_says_so(bare, folder, frozen_vae):
    clips = Clips(bare, folder, frozen_vae)
    clips._videos = [next(video for video in clips._videos if video.stem.startswith("w3"))] * 2
    with pytest.raises(FileNotFoundError, match="none of the 2 clips"):
        clips.block(0, 0)


def test_models_with_a_prior_are_sent_to_shards(config, folder, frozen_vae):
    with pytest.raises(ValueError, match="sekai-read"):
        Clips(config, folder, frozen_vae)


def test_a_folder_is_opened_as_what_it_is(config, bare, folder, data_folder, frozen_vae, tmp_path):
    assert isinstance(open_corpus(bare, folder, frozen_vae), Clips)
    assert isinstance(open_corpus(config, data_folder, frozen_vae), Corpus)
    with pytest.raises(FileNotFoundError, match="shards"):
        open_corpus(config, tmp_path, frozen_vae)


def test_foundation_training_runs_on_clips(bare, folder, vae_folder, tmp_path):
    settings = Settings(
        batch=2,
        noise_samples=1,
        micro_batches=2,
        pool=PoolSettings(4),
        optimization=Optimization(warmup=2),
        self_forcing=SelfForcing(dream_from=1, dream_over=1),
    )
    foundation.train(bare, folder, vae_folder, tmp_path, settings, 3, None)
    assert (tmp_path / "checkpoint" / "pool_1.pt").exists()


def test_decoding_is_spared_where_nobody_looks(frozen_vae):
    vae = LatentsOnly(frozen_vae)
    latents = torch.randn(2, 8, 3, 4, 6)
    video, cache = vae.decode(latents)
    expected, _ = frozen_vae.decode(latents)
    assert video.shape == expected.shape and cache == () and not video.any()
    assert video.untyped_storage().nbytes() == 4
    assert torch.equal(vae.encode(expected), frozen_vae.encode(expected))

"""Record, train and play worlds that nobody here wrote, each in well under a minute: more than a picture that stands still."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from train.engine.optimization import Optimization
from train.generator import autoencoder, foundation
from train.generator.encode import encode_recording
from train.generator.sheet import roll_out
from train.generator.windows import Windows
from train.recordings.environment import RecordSettings
from train.recordings.recorder import record
from train.world import Recipe, Settings, WorldTraining

# so few steps that noise levels below 1 would only be a distraction: what is asked is the mean of what may come
FOUNDATION = foundation.Settings(
    optimization=Optimization(lr=4e-3, warmup=50),
    ema=0.97,
    noise=foundation.Noise(noised=0.0, pure=1.0),
    texts=foundation.Texts(start=0.0),
    self_generated=foundation.SelfGenerated(begin=0.95),
)
RECIPE = Recipe(autoencoder.Settings(clips=300), FOUNDATION, steps={"autoencoder": 5, "heads": 10})
DRIVER = "train.recordings.policies:car_racing"
# what brings it, id, arguments of recording, steps; steps and batch of foundation training: little of Breakout's picture moves
WORLDS = {
    "Breakout": ("ale_py", "ALE/Breakout-v5", {"frame_skip": 4}, 500, 350, 8),
    "TakeCover": ("vizdoom", "VizdoomTakeCover-v1", {"frame_skip": 4}, 400, 200, 4),
    "CarRacing": ("Box2D", "CarRacing-v3", {"frame_skip": 4, "policy": DRIVER}, 120, 150, 4),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_recorded_world_is_learnt_and_played(name, tmp_path):
    package, env, options, recorded, trained, batch = WORLDS[name]
    pytest.importorskip(package, reason=f"{env} comes with pip install 'yume-gym[worlds]'")
    data, out = tmp_path / "data", tmp_path / "run"
    record(RecordSettings(env, max_episode_steps=60, **options), data, steps=recorded)
    settings, steps = dataclasses.replace(FOUNDATION, batch=batch), {**RECIPE.steps, "foundation": trained}
    recipe = dataclasses.replace(RECIPE, foundation=settings, steps=steps)
    training = WorldTraining(data, out, Settings(minutes=20, size="tiny"), recipe)
    training.all()

    clips = encode_recording(training.config, training.vae, training.files, training.episodes, training.conditioning)
    stream = torch.Generator().manual_seed(0)
    spans = clips.draw(64, 0, stream, fresh=0.0)
    made = roll_out(training.config, training.generator, clips, spans, 1, steps=1)  # the mean of what may come
    truth = Windows(training.config, clips).recorded(spans, 1)
    standing = clips.latents[clips.still[spans.start]].float()[:, :, None]
    assert (made - truth).square().mean() < 0.97 * (standing - truth).square().mean()

    world = gymnasium.make("yume_gym:YumeWorld-v0", model=str(out))
    observation, _ = world.reset(seed=0)
    world.action_space.seed(0)
    seen = [world.step(world.action_space.sample())[0] for _ in range(3)]
    assert observation.shape == (64, 64, 3)
    assert all(picture.shape == observation.shape for picture in seen)
    assert np.isfinite(np.mean(seen))

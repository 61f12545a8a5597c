"""Priors: a list of them, which may be empty; states that travel with their worlds; weights under their names of today."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from configs import with_dit
from torch import Tensor, nn

from world_model import batch, flow
from world_model.actions import Action
from world_model.conditions import BlockContext, Pose
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.priors.base import Prediction, Prior, Priors
from world_model.priors.names import RENAMED, renamed
from world_model.rollout import Sampling, block_noise, constrained_motion, dream_block, encode_conditions, generator
from world_model.text import Conditioning
from world_model.tscm import ChannelMemory
from world_model.vae import VideoVAE
from world_model.weights import load_dit, save_weights
from world_model.worlds import WorldBatch, collate_worlds, split_worlds, start_worlds

WALK, TURN = Action.from_keys("W"), Action.from_keys("", "→")


def bare(config: ModelConfig, **changes) -> ModelConfig:
    """The same model without priors."""
    return with_dit(dataclasses.replace(config, priors=()), **changes)


def same(a, b) -> bool:
    """Whether two batches are equal bit for bit."""
    equal: list[bool] = []
    batch.mapped(lambda axis, x, y: equal.append(torch.equal(x, y)) or x, a, b)
    return bool(equal) and all(equal)


# ---- an empty list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize("positions", ["view_sphere", "grid"])
def test_without_priors_a_model_is_the_generator_alone(prediction, positions, config, make_dit, make_vae, pictures):
    """From a picture and a text; two worlds side by side equal each alone."""
    alone = bare(config, prediction=prediction, positions=positions)
    model = WorldModel(alone, make_dit(alone), make_vae(alone).requires_grad_(False), Conditioning(alone.text))
    starts = [(pictures[0], "", 3), (None, "a park", 4)]
    together = model.start(*(list(column) for column in zip(*starts)))
    assert together.worlds.priors == () and same(collate_worlds(split_worlds(together.worlds)), together.worlds)
    for _ in range(2):
        together, shown = model.step(together, [WALK, TURN])
    assert np.isfinite(shown).all() and shown.std() > 1
    for number, (picture, text, seed) in enumerate(starts):
        state = model.start([picture], [text], [seed])
        for _ in range(2):
            state, frames = model.step(state, [WALK if number == 0 else TURN])
        np.testing.assert_array_equal(frames[0], shown[number])
        assert same(state.worlds, split_worlds(together.worlds)[number])


@torch.no_grad()
def test_without_priors_there_is_no_prediction(config, make_dit, make_vae):
    alone = bare(config)
    dit, vae = make_dit(alone), make_vae(alone)
    assert not any(name.startswith("prior") for name in dit.state_dict())
    worlds = start_worlds(dit, vae, torch.zeros(1, 3, 32, 48), torch.ones(1, dtype=torch.bool))
    context = torch.randn(1, 24, alone.dit.text_dim, generator=generator("context"))
    conditions, block = encode_conditions(
        dit, vae, worlds, constrained_motion(dit, worlds, [WALK]), context, context[:, 0]
    )
    assert conditions.mean is None and conditions.variance is None and block.predictions == ()


# ---- others than ours -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Count:
    """State of a `Grey` prior: blocks [B] int64 so far."""

    blocks: Tensor


class Grey(Prior):
    """Expects grey; nobody walks, and each block is one shade darker."""

    channels = 1

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def initial_state(self, pictures: Tensor, pose: Pose) -> Count:
        return Count(torch.zeros(len(pictures), dtype=torch.int64))

    def constrain(self, state, motion):
        return dataclasses.replace(motion, displacement=0 * motion.displacement)

    def condition_text(self, state: Count, block: BlockContext) -> Tensor:
        return 0 * block.context

    def predict(self, state: Count, block: BlockContext, vae: VideoVAE) -> Prediction:
        mean = torch.ones(len(state.blocks), 8, *block.target.frame.shape[1:], 4, 6) * state.blocks.view(-1, 1, 1, 1, 1)
        return Prediction(mean=mean, variance=self.variance + 0 * mean, features=mean[:, :1], auxiliary="grey")

    def update(self, state, block, prediction, latents, video):
        assert prediction.auxiliary == "grey" and not latents.requires_grad
        return Count(state.blocks + 1), 0.5 * video


def with_priors(dit: DiT, *priors: Prior) -> DiT:
    dit.priors = Priors(priors)
    dit.prior_embeddings = nn.ModuleList(nn.Conv3d(p.channels, dit.config.dit.dim, 1) for p in priors)
    return dit


@torch.no_grad()
def test_a_prior_is_asked_for_all_that_its_interface_says(config, make_dit, make_vae, pictures):
    alone = bare(config)
    dit, vae = with_priors(make_dit(alone), Grey(0.5)), make_vae(alone)
    seen = torch.from_numpy(pictures[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    worlds = start_worlds(dit, vae, seen, torch.ones(2, dtype=torch.bool))
    context = torch.randn(2, 24, alone.dit.text_dim, generator=generator("context"))
    pooled, sigmas = context[:, 8:].mean(dim=1), flow.sigma_schedule(2, 3.0)
    motion = constrained_motion(dit, worlds, [WALK, TURN])
    assert not motion.displacement.any() and motion.yaw[1].any()
    conditions, block = encode_conditions(dit, vae, worlds, motion, context, pooled)
    silent, _ = encode_conditions(dit, vae, worlds, motion, 0 * context, pooled)
    assert same(conditions, silent) and torch.equal(block.context, context)
    for step in range(2):
        noise = block_noise(alone, [1, 2], [step, step])
        streams = [generator("old", world) for world in range(2)]
        worlds, _, video = dream_block(
            dit, vae, worlds, [WALK, TURN], context, pooled, Sampling(noise, sigmas), streams
        )
    assert worlds.priors[0].blocks.tolist() == [2, 2] and video.abs().max() <= 0.6
    assert [world.priors[0].blocks.tolist() for world in split_worlds(worlds)] == [[2], [2]]


@torch.no_grad()
def test_precisions_of_several_priors_add_up(config, make_dit, make_vae):
    alone = bare(config)
    dit, vae = with_priors(make_dit(alone), Grey(0.5), Grey(2.0)), make_vae(alone)
    worlds = start_worlds(dit, vae, torch.zeros(1, 3, 32, 48), torch.ones(1, dtype=torch.bool))
    worlds = dataclasses.replace(worlds, priors=(Count(torch.tensor([1])), Count(torch.tensor([6]))))
    context = torch.zeros(1, 24, alone.dit.text_dim)
    conditions, _ = encode_conditions(dit, vae, worlds, constrained_motion(dit, worlds, [WALK]), context, context[:, 0])
    torch.testing.assert_close(conditions.variance, torch.full_like(conditions.variance, 1 / (1 / 0.5 + 1 / 2.0)))
    torch.testing.assert_close(conditions.mean, torch.full_like(conditions.mean, 0.4 * (1 / 0.5 + 6 / 2.0)))
    plain = dit.screen.flatten(2).transpose(1, 2).repeat(1, 2, 1)
    shown = sum(e(torch.full((1, 1, 2, 4, 6), x)) for e, x in zip(dit.prior_embeddings, (1.0, 6.0)))
    torch.testing.assert_close(conditions.bias, plain + shown.flatten(2).transpose(1, 2))


# ---- batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_joined_parted_repeated_and_moved_along_their_worlds(config, make_history):
    memory = ChannelMemory(torch.arange(12.0).view(3, 2, 2), torch.arange(6.0).view(3, 2))
    pair = (memory, [make_history(config, 2, 3), (Count(torch.tensor([4, 5])), None, 7)])
    one, two = (batch.rows(pair, slice(i, i + 1)) for i in (0, 1))
    assert one[0].total.shape == (3, 1, 2) and one[1][0].latents.shape[0] == 1 and one[1][1][1:] == (None, 7)
    assert same(batch.collate([one, two]), pair)
    assert same(batch.repeat(pair, 2), batch.collate([one, one, two, two]))
    assert batch.move(pair, "meta")[1][1][0].blocks.is_meta


# ---- numbers ----------------------------------------------------------------------------------------------------------


def rolled(model: WorldModel, picture: np.ndarray) -> str:
    """A fingerprint of what two worlds show, one from a picture and one from a text, with the event of rain on the way."""
    state, shown = model.start([picture, None], ["", "a fog"], [0, 1]), hashlib.sha256()
    shown.update(model.preview(state).tobytes())
    for event in (None, "a heavy rainstorm begins"):
        state, frames = model.step(state, [WALK, TURN], [event, None])
        shown.update(np.ascontiguousarray(frames).tobytes())
    return shown.hexdigest()


def test_a_rollout_is_bit_for_bit_what_it_was(config, make_dit, make_vae, pictures, tmp_path):
    """Also of weights under the names that they had before there were priors."""
    dit, vae = make_dit(config), make_vae(config)
    today = {new: old for old, new in RENAMED.items()}
    old = {}
    for name, value in dit.state_dict().items():
        first = next((new for new in today if name == new or name.startswith(f"{new}.")), None)
        old[name if first is None else today[first] + name.removeprefix(first)] = value
    assert {"depth.stem.weight", "prior_deviation", "guide_embedding.bias"} <= old.keys()
    assert renamed(old).keys() == dit.state_dict().keys() == renamed(dit.state_dict()).keys()
    save_weights(tmp_path, config, {"dit.safetensors": old}, {})
    again = DiT(config)
    load_dit(again, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name].to(value.dtype)) for name, value in halved(dit).items())
    models = [WorldModel(config, network, vae, Conditioning(config.text)) for network in (made_of(config, old), dit)]
    prints = [rolled(model, pictures[0]) for model in models]
    assert prints[0] == prints[1]


def halved(dit: DiT) -> dict[str, Tensor]:
    return {
        name: value.half().float() if value.is_floating_point() else value for name, value in dit.state_dict().items()
    }


def made_of(config: ModelConfig, tensors: dict[str, Tensor]) -> DiT:
    dit = DiT(config)
    dit.load_state_dict(renamed(tensors))
    return dit.eval()


def test_states_are_opaque_to_worlds():
    names = {field.name for field in dataclasses.fields(WorldBatch)}
    assert names == {"history", "memory", "yaw", "pitch", "frame", "picture", "cache", "priors", "told"}

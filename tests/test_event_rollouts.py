"""Event objects in rollouts: the prior that they are drawn into, their trajectories, and what texts change."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from event_town import FIRE, SNOW, STILL, UFO, event_dit_fixture, text_tokens  # noqa: F401  (fixtures, too)
from scenes import predicted, standing, state_of, with_state
from torch import Tensor

from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.priors.events import (
    NOTHING,
)
from world_model.priors.scene import LEAST
from world_model.priors.warp import REMEMBERED, USELESS
from world_model.retrieval import View
from world_model.rollout import (
    Sampling,
    append_and_decode,
    constrained_motion,
    dream_block,
    encode_conditions,
    generator,
)
from world_model.worlds import WorldBatch, collate_worlds, empty_worlds, split_worlds, start_worlds


def worlds_of(dit: DiT, vae, pictures: list[np.ndarray], count: int) -> WorldBatch:
    seen = torch.from_numpy(np.stack(pictures[:count])).permute(0, 3, 1, 2).float() / 127.5 - 1
    position = torch.tensor([[0.5, 20.0]] * count, dtype=torch.float64)
    yaw = torch.full((count,), 0.2, dtype=torch.float64)
    return start_worlds(dit, vae, seen, torch.ones(count, dtype=torch.bool), standing(yaw, position))


def context_of(config: ModelConfig, *texts: str) -> tuple[Tensor, Tensor]:
    event = text_tokens(config, *texts)
    table = torch.randn(len(texts), config.text.action_tokens, config.text.dim, generator=generator("action"))
    return torch.cat([event, table], dim=1), table.mean(dim=1)


def stepped(dit: DiT, vae, worlds: WorldBatch, config: ModelConfig, *texts: str):
    motion = constrained_motion(dit, worlds, [STILL] * len(texts))
    ready, block = encode_conditions(dit, vae, worlds, motion, *context_of(config, *texts))
    return motion, ready, block


def test_a_first_text_describes_the_scene_and_is_no_event(event_dit, event_config, make_vae, pictures, monkeypatch):
    """A text of snow has the event class of snow in a running world, and none as the first text of a world."""
    vae, classes = make_vae(event_config), []
    original = event_dit.priors[0].events.heard
    monkeypatch.setattr(
        event_dit.priors[0].events,
        "heard",
        lambda prompts, event_class: classes.append(event_class.tolist()) or original(prompts, event_class),
    )
    stepped(event_dit, vae, worlds_of(event_dit, vae, pictures, 2), event_config, SNOW, UFO)
    _, _, block = stepped(event_dit, vae, empty_worlds(event_dit, vae, 2, torch.device("cpu")), event_config, SNOW, UFO)
    assert classes == [[2, 0]] * 2 + [[NOTHING, NOTHING]] * 2 and predicted(block).covered is None


def test_event_objects_are_drawn_over_the_prior_mean_with_confidence(event_dit, event_config, make_vae, pictures):
    vae = make_vae(event_config)
    worlds = worlds_of(event_dit, vae, pictures, 2)
    plain = copy.deepcopy(event_dit)
    plain.priors[0].events = None
    _, ready, block = stepped(event_dit, vae, worlds, event_config, UFO, "nothing of the sort")
    _, bare, without = stepped(plain, vae, worlds, event_config, UFO, "nothing of the sort")
    assert torch.equal(ready.mean[1], bare.mean[1]) and torch.equal(ready.variance[1], bare.variance[1])
    field, events, classes = event_dit.priors[0].places, event_dit.priors[0].events, torch.tensor([0, NOTHING])
    begun = events.begin(classes, field, state_of(worlds).place, worlds.yaw)
    assert (
        torch.equal(predicted(block).course[0, :3], begun[0])
        and not predicted(block).course[1, :4].any()
        and predicted(block).course[:, 4].tolist() == [0, 1]
    )
    frames = event_config.block_latents
    ages = torch.arange(frames)[None]
    position = state_of(worlds).place[:, None].expand(-1, frames, -1)
    yaw = worlds.yaw[:, None].expand(-1, frames)
    rays = field.rays(position, yaw, 0 * yaw)
    latents = worlds.history.latents
    appearance = field.looks(
        latents[:, :, 0],
        latents[:, :, -1],
        worlds.history.has_past,
        text_tokens(event_config, UFO, "nothing of the sort"),
    )
    rendered = field.painted(rays, appearance)
    ray_depth = field.clear_sight(position, yaw, 0 * yaw)
    sprites, covered = events(
        classes, View(yaw, 0 * yaw, position), ray_depth, predicted(block).course[:, :3], ages.expand(2, -1), rendered
    )
    stride = event_config.vae.temporal_stride
    opacity, sprite = (part.repeat_interleave(stride, dim=2) for part in (covered, sprites))

    def over(view: Tensor) -> Tensor:
        return ((1 - opacity) * vae.decode(view)[0] + opacity * sprite).clamp(-1, 1)

    seen = over(predicted(without).guide.latents)
    latents = vae.encode(seen)
    expected = torch.lerp(vae.encode(over(rendered)), latents, predicted(block).guide.valid)
    coverage = covered.unflatten(3, (-1, 8)).unflatten(5, (-1, 8)).mean(dim=(4, 6))
    torch.testing.assert_close(ready.variance[0], (bare.variance * (1 - coverage) + LEAST * coverage)[0])
    torch.testing.assert_close(ready.mean[0], expected[0], atol=1e-5, rtol=1e-4)
    assert 0.05 < covered[0].mean() < 0.95 and torch.equal(predicted(block).covered, covered[:, :, -1])
    # the residual that latents lose of an object is added where the block shows it as it was drawn
    residual = (1 - opacity) * predicted(without).guide.detail + opacity * (seen - vae.decode(latents)[0])
    torch.testing.assert_close(predicted(block).guide.detail[0], residual[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predicted(block).guide.detail[1], predicted(without).guide.detail[1])


def test_moving_objects_are_not_retrieved_where_they_were(event_dit, event_config, make_vae, pictures):
    vae = make_vae(event_config)
    worlds = worlds_of(event_dit, vae, pictures, 2)
    _, _, block = stepped(event_dit, vae, worlds, event_config, UFO, "")
    covered = torch.zeros_like(predicted(block).covered)
    covered[0, 0, 8:16, 16:24] = 0.9
    noise = torch.zeros(2, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
    streams = [generator("draw", i) for i in range(2)]
    hidden = dataclasses.replace(block.predictions[0], auxiliary=dataclasses.replace(predicted(block), covered=covered))
    after, _ = append_and_decode(event_dit, vae, dataclasses.replace(block, predictions=(hidden,)), noise, streams)
    maximal, margin = state_of(after).doubt[:, 0] >= USELESS, (slice(4, 20), slice(12, 28))
    assert maximal[0][margin].all() and maximal.sum() == 16 * 16
    _, _, later = stepped(event_dit, vae, after, event_config, UFO, "")
    assert predicted(later).guide.valid[0, 0, 0, 1, 2] <= REMEMBERED < predicted(later).guide.valid[1].min()
    memory = append_and_decode(event_dit, vae, later, noise, streams)[0].priors[0].album
    kept = [torch.equal(memory.pictures[i], state_of(after).album.pictures[i]) for i in range(2)]
    assert kept == [True, False]  # the picture that shows the object is not added


def test_an_event_keeps_its_position_until_another_begins(event_dit, event_config, make_vae, pictures):
    vae, action = make_vae(event_config), Action.from_keys("W", "→")
    worlds, states = worlds_of(event_dit, vae, pictures, 1), []
    sigmas = torch.tensor([1.0, 0.0])
    for number, text in enumerate(["", UFO, UFO, "nothing of the sort", FIRE]):
        noise = torch.zeros(1, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
        context, pooled = context_of(event_config, text)
        worlds, *_ = dream_block(
            event_dit, vae, worlds, [action], context, pooled, Sampling(noise, sigmas), [generator("old", number)]
        )
        states.append(state_of(worlds).course[0])
    assert not states[0].any() and states[1][3] == event_config.block_latents
    assert torch.equal(states[1], states[2]) and torch.equal(states[2][:4], states[3][:4])
    assert states[4][3] == 4 * event_config.block_latents and not torch.equal(states[4][:3], states[1][:3])
    pair = collate_worlds([worlds, with_state(worlds, course=2 * state_of(worlds).course)])
    for world, times in zip(split_worlds(pair), (1, 2)):
        assert torch.equal(state_of(world).course, times * state_of(worlds).course)


def test_only_texts_that_may_change_the_light_lower_the_confidence(event_dit, event_config, make_vae, pictures):
    """An object that comes or goes leaves all else as it was; an unknown text may change anything."""
    vae, other = make_vae(event_config), "nothing of the sort"
    noise = torch.zeros(1, event_config.dit.latent_channels, event_config.block_latents, *event_config.latent_size)
    expected = {
        ("", UFO): False,
        (UFO, FIRE): False,
        (UFO, ""): False,
        (UFO, SNOW): True,
        (SNOW, ""): True,
        (SNOW, UFO): True,
        ("", other): True,
        (other, ""): True,
        (UFO, UFO): False,
        (SNOW, SNOW): False,
    }
    for (before, after), changed in expected.items():
        worlds = worlds_of(event_dit, vae, pictures, 1)
        _, _, block = stepped(event_dit, vae, worlds, event_config, before)
        worlds, _ = append_and_decode(event_dit, vae, block, noise, [generator("draw")])
        assert predicted(stepped(event_dit, vae, worlds, event_config, after)[2]).changed.tolist() == [changed], (
            before,
            after,
        )

"""Worlds in a memorised town: what their prior is, and their weights."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memorised_town import TURN, WALK, town_dit_fixture, town_folder_fixture, town_model_fixture  # noqa: F401  (fixtures, too)
from safetensors import safe_open
from scenes import predicted, standing, state_of, with_state
from torch import Tensor

from train.data.shards import HELD_OUT
from world_model.actions import Action
from world_model.model import WorldModel, WorldState
from world_model.priors.config import scene_of
from world_model.priors.warp import OUTDATED, REMEMBERED, WEAR
from world_model.rollout import append_and_decode, commanded_motions, constrained_motion, encode_conditions, generator
from world_model.text import Conditioning
from world_model.worlds import WorldBatch, empty_worlds, split_worlds, start_worlds

# ---- worlds that stand in a town --------------------------------------------------------------------------------------


def tensors_of(worlds: WorldBatch) -> list[Tensor]:
    scene = state_of(worlds)
    parts = [
        worlds.history.latents,
        worlds.yaw,
        worlds.pitch,
        worlds.picture,
        scene.place,
        scene.doubt,
        scene.album.pictures,
    ]
    return [*parts, worlds.memory.total, worlds.memory.norm, *worlds.cache]


def test_the_scene_field_is_the_prior_where_the_warped_frame_is_empty(town_dit, town_config):
    shape = (2, town_config.dit.latent_channels, town_config.block_latents, *town_config.latent_size)
    warped, field = (torch.randn(shape, generator=generator(name)) for name in ("warped", "field"))
    valid = torch.zeros(2, 1, *shape[2:])
    valid[0, ..., 3:] = 1.0
    valid[1, ..., 0, :] = 0.25
    prior = town_dit.priors[0].combined(warped, valid, field)
    mean, variance = prior.mean, prior.variance
    unseen, seen = (town_dit.priors[0].deviation[row].square()[:, None, None, None] for row in (0, 1))
    assert torch.equal(mean[0, ..., :3], field[0, ..., :3]) and torch.equal(mean[0, ..., 3:], warped[0, ..., 3:])
    assert torch.equal(variance[0, ..., :3], unseen.expand_as(variance[0, ..., :3]))
    assert torch.equal(variance[0, ..., 3:], seen.expand_as(variance[0, ..., 3:]))
    torch.testing.assert_close(mean[1, ..., 0, :], 0.75 * field[1, ..., 0, :] + 0.25 * warped[1, ..., 0, :])
    assert torch.equal(mean[1, ..., 1:, :], field[1, ..., 1:, :])


@torch.no_grad()
def test_the_next_block_is_rendered_from_its_own_poses(town_dit, town_config, make_vae):
    """Worlds without earlier pictures: a block's denoising starts from the scene field, rendered at the poses of its
    latents' last pictures, with the appearance that the text names."""
    vae, zero = make_vae(town_config), torch.zeros(2, dtype=torch.float64)
    there = standing(zero + 0.2, torch.tensor([[1.0, 20.0], [41.0, -7.0]], dtype=torch.float64))
    worlds = empty_worlds(town_dit, vae, 2, torch.device("cpu"), there)
    motion = constrained_motion(town_dit, worlds, [WALK, TURN])
    context = torch.randn(2, 24, town_config.dit.text_dim, generator=generator("context"))
    ready, block = encode_conditions(town_dit, vae, worlds, motion, context, context[:, 8:].mean(dim=1))
    assert predicted(block).guide is not None and not predicted(block).guide.valid.any()
    nothing = torch.zeros(1, town_config.dit.latent_channels, *town_config.latent_size)
    for world in range(2):
        prompt = context[world : world + 1, :8]
        appearance = town_dit.priors[0].places.looks(nothing, nothing, torch.zeros(1, dtype=torch.bool), prompt)
        for latent, frame in enumerate((1, 3)):
            position = state_of(worlds).place[world] + motion.displacement[world, frame]
            expected = town_dit.priors[0].places(
                position[None, None],
                motion.yaw[world : world + 1, frame : frame + 1],
                motion.pitch[world : world + 1, frame : frame + 1],
                appearance,
            )
            torch.testing.assert_close(ready.mean[world, :, latent], expected[0, :, 0], atol=1e-4, rtol=1e-4)
    assert ready.mean.std() > 0.05


@torch.no_grad()
def test_priors_of_a_batch_are_those_of_each_world_alone(town_dit, town_config):
    stream = generator("views")
    position = torch.rand(3, 2, 2, generator=stream, dtype=torch.float64) * 10 - 5
    yaw, pitch = (torch.randn(3, 2, generator=stream, dtype=torch.float64) * spread for spread in (2.0, 0.2))
    appearance = torch.randn(3, scene_of(town_config).places.look, generator=stream)
    together = town_dit.priors[0].places(position, yaw, pitch, appearance)
    for world in range(3):
        one = slice(world, world + 1)
        alone = town_dit.priors[0].places(position[one], yaw[one], pitch[one], appearance[one])
        torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().mean() > 0.02


def test_a_world_in_company_equals_it_alone(town_model, pictures):
    """From pictures and a text, three steps, bit for bit."""
    starts = [(pictures[0], "", 3), (None, "a park", 4), (pictures[2], "", 5)]
    together = town_model.start(*(list(column) for column in zip(*starts)))
    for _ in range(2):
        together, expected = town_model.step(together, [WALK, TURN, WALK])
    for number, (picture, text, seed) in enumerate(starts):
        state = town_model.start([picture], [text], [seed])
        for _ in range(2):
            state, frames = town_model.step(state, [TURN if number == 1 else WALK])
        np.testing.assert_array_equal(frames[0], expected[number])
        alone, company = (tensors_of(worlds) for worlds in (state.worlds, split_worlds(together.worlds)[number]))
        assert all(torch.equal(a, b) for a, b in zip(alone, company, strict=True))


# ---- a text that changes ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_variance_after_a_changed_text_is_a_kalman_filters(town_dit, town_config, make_vae, pictures):
    """Two worlds that stand still; one gets the event of rain in its second block, and again in its third.

    A block's validity v is the weight of earlier pictures, and leaves the variance 1 - v + WEAR; a picture of variance d weighs
    1 / (1 + d).
    """
    vae, steps = make_vae(town_config), []
    seen = torch.from_numpy(pictures[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    where = standing(torch.zeros(2).double(), torch.tensor([[0.5, 20.0], [41.0, 3.0]]).double())
    worlds = start_worlds(town_dit, vae, seen, torch.ones(2, dtype=torch.bool), where)
    tokens = {text: Conditioning(town_config.text).context([Action()], [text])[0] for text in ("a park", "rain", None)}
    streams = [generator("old", world) for world in range(2)]
    for texts in (("a park", None), ("rain", None), ("rain", None)):
        context, motion = (
            torch.cat([tokens[text] for text in texts]),
            constrained_motion(town_dit, worlds, [Action()] * 2),
        )
        _, block = encode_conditions(town_dit, vae, worlds, motion, context, context[:, 8:].mean(dim=1))
        steps.append(
            (
                predicted(block).guide,
                state_of(worlds).album.filled.any(dim=1).tolist(),
                predicted(block).changed.tolist(),
            )
        )
        worlds, _ = append_and_decode(town_dit, vae, block, predicted(block).guide.latents, streams)
    assert [changed for *_, changed in steps] == [[False, False], [True, False], [False, False]]
    assert [filled for _, filled, _ in steps] == [[False, False], [True, True], [False, True]]
    variances = [0.0, 0.0]
    for number, (prior, remembered, changed) in enumerate(steps):
        for world in range(2):
            valid = 1 / (1 + variances[world])
            if remembered[world] and not changed[world]:  # the same view is in the keyframe memory
                valid += REMEMBERED * (1 - valid)
            valid *= OUTDATED if changed[world] else 1
            variances[world] = min(1.0, 1 - valid + WEAR)
            for found, expected in ((prior.valid[world], valid), (prior.doubt[world], variances[world])):
                right = (found - expected).abs() < 1e-4  # but for a pixel in a corner
                assert right.float().mean() > 0.9, f"block {number} of world {world}: {found} instead of {expected}"
    assert torch.equal(state_of(worlds).doubt, steps[-1][0].doubt)


def test_worlds_stop_at_walls(town_model, pictures):
    """Straight at a house: commanded on and on, it stays on the street; turning goes on as commanded."""
    state = town_model.start([pictures[1]], [""], [1])  # at x = 41, z = 3, looking along x
    state = replace(state, worlds=with_state(state.worlds, place=torch.tensor([[40.0, 20.0]], dtype=torch.float64)))
    keys = Action.from_keys("W", "→")
    free = commanded_motions(town_model.config, [keys], state.worlds.yaw, state.worlds.pitch)
    for _ in range(8):
        state, _ = town_model.step(state, [WALK])
    assert 43.5 < float(state_of(state.worlds).place[0, 0]) < 45.0  # the pavement ends at 45
    turned = constrained_motion(town_model.dit, state.worlds, [keys])
    assert torch.equal(turned.yaw, free.yaw) and torch.equal(turned.pitch, free.pitch)
    assert turned.displacement[0, -1, 0] < 0.3 < free.displacement[0, -1, 0]


def test_a_stored_state_goes_on(town_model, pictures):
    state, _ = town_model.step(town_model.start([pictures[0]], [""], [1]), [WALK])
    again: WorldState = pickle.loads(pickle.dumps(state))
    assert (
        torch.equal(state_of(again.worlds).place, state_of(state.worlds).place)
        and state_of(state.worlds).place.abs().sum() > 1
    )
    for ours, right in zip(*(town_model.step(s, [TURN]) for s in (again, state))):
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, right)
        else:
            assert all(
                torch.equal(a, b) for a, b in zip(tensors_of(ours.worlds), tensors_of(right.worlds), strict=True)
            )


def test_half_precision_runs_too(town_folder, pictures):
    model = WorldModel.load(town_folder, device="cpu", dtype="bfloat16")
    assert model.dit.priors[0].places.distance.dtype == torch.uint8
    _, frames = model.step(model.start([pictures[0], None], ["", "a park"], [1, 2]), [WALK, TURN])
    assert frames.std() > 5


# ---- weights ----------------------------------------------------------------------------------------------------------


def test_weights_keep_distances_as_whole_numbers(town_folder, town_dit, town_model):
    with safe_open(town_folder / "dit.safetensors", framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds["priors.0.places.distance"] == torch.uint8 and kinds["priors.0.places.walkable"] == torch.bool
    whole = ("distance", "walkable", "bricks")
    assert kinds["priors.0.places.bricks"] == torch.int64
    assert all(kind == torch.float16 for name, kind in kinds.items() if name.split(".")[-1] not in whole)
    for name in whole:
        ours, right = (getattr(dit.priors[0].places, name) for dit in (town_model.dit, town_dit))
        assert ours.dtype == right.dtype and torch.equal(ours, right)
    assert torch.equal(town_model.dit.priors[0].places.tables[0], town_dit.priors[0].places.tables[0].half().float())
    listed = json.loads((town_folder / "manifest.json").read_text())["files"]
    assert {"finder.safetensors", "starts.json", "starts.png"} <= listed.keys()


@pytest.mark.parametrize("name", ["finder.safetensors", "starts.json"])
def test_a_missing_part_is_named(name, town_folder, tmp_path):
    for path in town_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        WorldModel.load(tmp_path)


def test_a_town_needs_relocalisation(town_model, town_dit, pictures):
    model = WorldModel(town_model.config, town_dit, town_model.vae, town_model.conditioning)
    with pytest.raises(ValueError, match="debug knows a town and needs a finder"):
        model.start([pictures[3]], [""], [1])
    model.start(None, ["a park"], [1])  # a text start samples its own pose


@torch.no_grad()
def test_prior_std_is_from_the_scene_field(town_corpus, town_dit, frozen_vae):
    """Block by block; the second row is the warped frame's, as of the same model without a scene field."""
    everywhere, seen = town_corpus.prior_deviation(town_dit.priors[0], frozen_vae)
    squares = []
    for trajectory in range(HELD_OUT, len(town_corpus)):
        first = town_corpus.block(trajectory, 0)[None, :, 0]
        for block in range(1, town_corpus.blocks):
            before = town_corpus.block(trajectory, block - 1)[None, :, -1]
            prompt = town_corpus.text(town_corpus.info(trajectory).event_at(block))[None]
            appearance = town_dit.priors[0].places.looks(first, before, torch.ones(1, dtype=torch.bool), prompt)
            motion = town_corpus.motion([trajectory], [block])
            start = torch.tensor(town_corpus.position(trajectory, block), dtype=torch.float64)
            position = start + motion.displacement[:, 1::2]
            rendered = town_dit.priors[0].places(position, motion.yaw[:, 1::2], motion.pitch[:, 1::2], appearance)
            squares.append((town_corpus.block(trajectory, block) - rendered[0]).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(everywhere, torch.stack(squares).mean(dim=0).sqrt(), atol=1e-3, rtol=1e-3)
    without = SimpleNamespace(depth=town_dit.priors[0].depth, places=None)
    blank, same_seen = town_corpus.prior_deviation(without, frozen_vae)
    assert torch.equal(seen, same_seen) and not torch.allclose(blank, everywhere, rtol=0.05)

"""Where worlds of a memorised town start: at shipped pictures, where relocalisation finds others, and where a text leads."""

from __future__ import annotations

import pytest
import torch
from memorised_town import POSES, town_dit_fixture, town_folder_fixture, town_model_fixture  # noqa: F401  (fixtures, too)
from scenes import state_of

from world_model.priors.finder import Finder
from world_model.rollout import generator


def test_shipped_pictures_are_not_searched_for(town_model, pictures, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(Finder, "find", never)
    state = town_model.start([pictures[2], pictures[1].copy()], ["", ""], [1, 2])
    for world, pose in enumerate((POSES[2], POSES[1])):
        assert state_of(state.worlds).place[world].tolist() == list(pose[:2])
        assert float(state.worlds.yaw[world]) == pose[2]
        assert (state.worlds.history.yaw[world] == pose[2]).all()
    with pytest.raises(AssertionError, match="searched"):
        town_model.start([pictures[3]], [""], [1])


def test_other_pictures_are_searched_for(town_model, pictures):
    """The world starts where `locate` says, and one can stand there; the error is that of the rendered town."""
    (x, z, yaw), error = town_model.locate(pictures[3])
    state = town_model.start([pictures[3]], [""], [1])
    assert (*state_of(state.worlds).place[0].tolist(), float(state.worlds.yaw)) == (x, z, yaw)
    with torch.no_grad():
        picture = torch.from_numpy(pictures[3]).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = town_model.vae.encode(picture[:, :, None].expand(-1, -1, 2, -1, -1))[:, :, 0]
        places, view = town_model.dit.priors[0].places, torch.tensor([[[x, z]]], dtype=torch.float64)
        look = places.looks(latents, latents, torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, 16))
        there = places(view, torch.tensor([[yaw]]), torch.zeros(1, 1), look)[:, :, 0]
    rest, own = (x.flatten(2) - x.flatten(2).mean(dim=2, keepdim=True) for x in (there - latents, latents))
    assert error == pytest.approx(float(rest.square().sum() / own.square().sum()), rel=1e-3)
    assert places.free(view[0]).all()


def test_models_without_a_town_find_nothing(world_model, pictures):
    with pytest.raises(ValueError, match="'debug' knows no town"):
        world_model.locate(pictures[0])


def test_a_text_start_is_at_a_walkable_position(town_model):
    """At one of the views, sampled by the text's tokens and the seed; each of them is on a street."""
    state = town_model.start(None, ["a park"] * 6, [1, 2, 3, 4, 5, 6])
    places, worlds = town_model.dit.priors[0].places, state.worlds
    assert places.free(state_of(worlds).place).all()
    assert len({tuple(place) for place in state_of(worlds).place.tolist()}) > 3
    stand = torch.cat([state_of(worlds).place, worlds.yaw[:, None]], dim=1)
    assert (stand[:, None] == places.views.double()).all(dim=-1).any(dim=1).all()
    for world in range(6):
        pose = places.somewhere(generator("place", world + 1), town_model.conditioning.event("a park")[None])
        assert torch.equal(pose, stand[world])
    assert torch.equal(town_model.start(None, ["a park"], [4]).worlds.priors[0].place[0], state_of(worlds).place[3])


def test_a_text_start_is_where_the_text_leads(town_model):
    """One view is made certain for a text; other texts, and none, go elsewhere."""
    places, seeds = town_model.dit.priors[0].places, [1, 2]
    towards = town_model.conditioning.event("a park")[:2].mean(dim=0)  # two words, the rest is padding
    places.where.weight.zero_()[7] = 100 * towards
    places.where.weight[8] = -100 * towards
    places.where.bias.zero_()

    def stands(text: str | None) -> list[list[float]]:
        worlds = town_model.start(None, [text] * len(seeds), seeds).worlds
        return torch.cat([state_of(worlds).place, worlds.yaw[:, None]], dim=1).tolist()

    there = places.views[7].double().tolist()
    assert stands("a park") == len(seeds) * [there]
    for text in ("snow falls", None):
        assert there not in stands(text)

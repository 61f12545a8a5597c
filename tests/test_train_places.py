"""Training of a scene field: the appearance of a town."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scenes import state_of
from stopped import stopped_after
from test_voxels import COUNTED, places_of
from torch import Tensor

from train import foundation
from train import places as stage
from train.data.shards import HELD_OUT, TrajectoryInfo
from train.engine.optimization import Optimization
from train.engine.pool import PoolSettings
from train.land import STARTS, Network, Parts, export_with_priors, starting_pictures
from train.places import (
    Drift,
    error_of,
    load_places,
    mixed,
    see,
    settled,
    train,
)
from train.street.walks import rephrased
from world_model.camera import CameraConfig
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.priors.config import PlacesConfig, scene_of, with_scene
from world_model.priors.distance_field import PARTLY
from world_model.priors.finder import Finder
from world_model.priors.places import Places, Rays
from world_model.rollout import generator
from yume_gym.street.events import EVENTS

pytestmark = pytest.mark.usefixtures("few_views")

QUICK = replace(COUNTED, batch=6, lr=1e-2, table_lr=1e-1, candidates=60, captions=2, texts=4, ema=0.9)
LEARNT = 40  # steps of the run that several tests look at


# ---- learning what they look like -------------------------------------------------------------------------------------


class Asked:
    """Stands for a scene field: it keeps its arguments."""

    def looks(self, *asked: Tensor) -> Tensor:
        self.light = asked
        return torch.zeros(len(asked[0]), 4)

    def __call__(self, *asked: Tensor) -> Tensor:
        self.view = asked
        return torch.zeros(())


def test_what_is_learnt_is_the_truth_seen_from_the_true_pose(town_corpus, town_config):
    blocks, places = [(4, 3), (6, 11), (5, 1)], Asked()
    _, truth = see(places, town_corpus, blocks, generator("see"))
    place, yaw, pitch, _ = places.view
    first, before, present, words = places.light
    for row, (walk, block) in enumerate(blocks):
        assert torch.equal(truth[row], town_corpus.block(walk, block))
        assert any(torch.equal(first[row], town_corpus.block(walk, earlier)[:, 0]) for earlier in range(block))
        assert torch.equal(before[row], town_corpus.block(walk, block - 1)[:, -1])
        for latent, frame in enumerate((4 * block + 1, 4 * block + 3)):  # the last picture of each latent frame
            assert place[row, latent].tolist() == pytest.approx(town_corpus._positions[walk, frame].tolist(), abs=1e-5)
            assert float(yaw[row, latent]) == pytest.approx(float(town_corpus.yaw[walk, frame]))
            assert float(pitch[row, latent]) == pytest.approx(float(town_corpus.pitch[walk, frame]))
    assert present.all()
    assert torch.equal(words[1], town_corpus.text(town_corpus.info(6).event_at(11))) and words[1].any()
    everything = Drift(mixed=1.0, outdated=0.0, unheard=0.0)
    see(places, town_corpus, blocks, generator("see"), everything)
    assert torch.equal(places.light[0], first) and not torch.equal(places.light[1], before)  # only what is shown drifts


def test_training_pictures_are_earlier_ones_and_texts_are_rephrased(town_corpus):
    """What is shown may be any earlier picture, an event is told in all phrasings of its kind, and tokens are left out."""
    walk, block = 6, 11
    info, places = town_corpus.info(walk), Asked()
    kind = next(kind for _, text, kind in info.event if text == info.event_at(block))
    drift = Drift(mixed=0.0, outdated=0.5, unheard=0.25)
    _, truth = see(places, town_corpus, 400 * [(walk, block)], generator("late"), drift)
    _, shown, _, words = places.light
    assert all(torch.equal(latents, town_corpus.block(walk, block)) for latents in truth)  # the truth stays the truth
    earlier = torch.stack([town_corpus.block(walk, b)[:, -1] for b in range(block)])
    which = (shown[:, None] == earlier).flatten(2).all(dim=-1).int().argmax(dim=1)
    assert torch.equal(shown, earlier[which]) and set(which.tolist()) == set(range(block))
    assert float((which == block - 1).float().mean()) == pytest.approx(0.5 + 0.5 / block, abs=0.08)
    phrases = torch.stack([town_corpus.text(phrase) for phrase in EVENTS[kind].phrases])
    said = (words != 0).any(dim=-1)
    agree = ((words[:, None] == phrases) | ~said[:, None, :, None]).flatten(2).all(dim=-1)
    assert agree.any(dim=1).all() and len(set(agree.int().argmax(dim=1).tolist())) > 5
    full = (phrases != 0).any(dim=-1)[agree.int().argmax(dim=1)]
    assert float((full & ~said).sum() / full.sum()) == pytest.approx(0.25, abs=0.05)


def test_texts_of_unknown_kinds_are_not_rephrased():
    info = TrajectoryInfo("a street", ((2, "rain sets in", None), (4, None, None), (6, "night falls", "night")))
    stream = generator("rephrased")
    assert [rephrased(info, block, stream) for block in (0, 2, 3, 5)] == [None, "rain sets in", "rain sets in", None]
    assert {rephrased(info, 7, stream) for _ in range(400)} == set(EVENTS["night"].phrases)


def test_blocks_in_which_a_text_begins_or_ends_are_not_learnt():
    info = TrajectoryInfo("a street", ((2, "night falls", "night"), (5, None, None)))
    assert [settled(info, block, 8) for block in range(1, 8)] == [1, 3, 3, 4, 6, 6, 7]
    assert settled(TrajectoryInfo("a street", ((7, "night falls", "night"),)), 7, 8) == 7  # there is no next


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_pictures_has_some_of_the_light_of_another(share):
    """Picture n is 1 in channel n alone, so that the channels tell how much of which picture is in a mixture."""
    pictures = torch.eye(300)[:, :, None, None].expand(-1, -1, 2, 3)
    found = mixed(pictures, share, generator("mixed"))
    assert found.shape == pictures.shape and (found == found[..., :1, :1]).all()
    parts = found[..., 0, 0]
    torch.testing.assert_close(parts.sum(dim=1), torch.ones(300))
    other = parts - parts.diag().diag()
    amount, partner = other.max(dim=1)
    torch.testing.assert_close(other.sum(dim=1), amount)  # of one other alone
    assert (amount <= 0.6).all() and float((amount > 0).float().mean()) == pytest.approx(share, abs=0.08)
    if share:
        some = amount[amount > 0]
        assert float(some.mean()) == pytest.approx(0.3, abs=0.05) and some.min() < 0.05 and some.max() > 0.55
        assert len(set(partner[amount > 0].tolist())) == len(some)
    else:
        assert torch.equal(found, pictures)


def quick(config: ModelConfig, folders: tuple[Path, Path], out: Path, steps: int, **given) -> dict[str, Tensor]:
    train(config, *folders, out, replace(QUICK, **given.pop("settings", {})), steps, None, **given)
    return load_file(out / stage.WEIGHTS)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def places_folder(town_config, data_folder, vae_folder, tmp_path_factory) -> Path:
    """What `train.places` leaves after a few steps."""
    folder = tmp_path_factory.mktemp("places")
    quick(town_config, (data_folder, vae_folder), folder, LEARNT)
    return folder


@torch.no_grad()
def test_training_lowers_the_loss_and_its_weights_load(places_folder, town_config, town_corpus):
    learnt = places_of(town_config)
    load_places(learnt, places_folder)
    assert (learnt.distance == 0).any() and (learnt.distance > 40).any() and not learnt.walkable.all()
    assert len(learnt.views.unique(dim=0)) == len(learnt.views)
    blocks = [(walk, block) for walk in (4, 5, 6) for block in range(1, 16, 3)]

    def loss(places: Places) -> float:
        found, truth = see(places, town_corpus, blocks, generator("loss"))
        return float((found - truth).square().mean())

    untrained = places_of(town_config)
    assert loss(learnt) < 0.8 * loss(untrained)
    facts = json.loads((places_folder / "places.json").read_text())
    assert ModelConfig.from_json(json.dumps({k: v for k, v in facts.items() if k != "places_training"})) == town_config
    assert facts["places_training"]["steps"] == LEARNT
    assert math.isfinite(facts["places_training"]["psnr"]) and facts["places_training"]["explained"] < 1
    sheet = np.asarray(Image.open(places_folder / "sheets" / "places.png"))
    assert sheet.shape == (2 * HELD_OUT * town_config.height, 8 * town_config.width, 3)


def test_training_resumes_exactly(town_config, data_folder, vae_folder, tmp_path, monkeypatch):
    """6 steps at once equal 3 and, from the checkpoint alone, 3 more; the geometry is not counted again."""
    folders, shares = (data_folder, vae_folder), []
    with monkeypatch.context() as patch:
        patch.setattr(
            stage, "mixed", lambda pictures, share, stream: shares.append(share) or mixed(pictures, share, stream)
        )
        whole = quick(town_config, folders, tmp_path / "whole", 6)
    assert shares == 6 * [QUICK.drift.mixed]  # nothing is mixed where errors are measured
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", stopped_after(3))
        assert not same(quick(town_config, folders, tmp_path / "parts", 6), whole)
    for name in ("count_voxels", "mark_walks"):
        monkeypatch.setattr(stage, name, None)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "learn_views", None)
        assert same(quick(town_config, folders, tmp_path / "parts", 6), whole)
    # a run may also begin from another's weights; only what texts tell is learnt anew
    other = quick(town_config, folders, tmp_path / "other", 0, before=tmp_path / "whole", settings={"seed": 5})
    anew = {name for name in whole if not torch.equal(other[name], whole[name])}
    assert other.keys() == whole.keys() and anew == {
        "views",
        "where.weight",
        "where.bias",
        "sky.weight",
        "sky.bias",
        "skies",
    }
    facts = json.loads((tmp_path / "other" / "places.json").read_text())["places_training"]
    assert facts["steps"] == 6  # of both


def test_only_models_with_a_scene_field_train_it(config, data_folder, vae_folder, tmp_path):
    with pytest.raises(ValueError, match=r"debug learns no places: its scene prior has none"):
        train(config, data_folder, vae_folder, tmp_path, QUICK, 1, None)


def test_scene_fields_that_are_missing_or_do_not_fit_are_refused(places_folder, town_config, tmp_path):
    places = places_of(town_config)
    for folder in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no places\.safetensors in .*--places, a run of train\.places"):
            load_places(places, folder)
    (tmp_path / stage.WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"places\.safetensors does not hold the places of this model"):
        load_places(places, tmp_path)
    finer = with_scene(town_config, places=replace(scene_of(town_config).places, cell=0.8))
    with pytest.raises(ValueError, match="does not hold the places of this model"):
        load_places(places_of(finer), places_folder)


def test_the_error_of_a_whole_block_counts_besides_that_of_its_tokens():
    truth = torch.randn(2, 3, 4, 5, 6, generator=generator("truth"))
    lighter = truth + torch.tensor([0.5, -0.5, 0.1])[:, None, None, None]
    plain = float((lighter - truth).square().mean())
    assert float(error_of(lighter, truth, 10.0)) == pytest.approx(11 * plain, rel=1e-5)
    noise = torch.randn(truth.shape, generator=generator("noise"))
    noise = noise - noise.mean(dim=(2, 3, 4), keepdim=True)  # leaves every block's mean as it is
    assert float(error_of(truth + noise, truth, 10.0)) == pytest.approx(float(noise.square().mean()), rel=1e-4)


# ---- training and landing of a model that knows a town ----------------------------------------------------------------


def test_a_model_is_trained_and_exported_with_its_town(
    town_config, data_folder, vae_folder, depth_folder, places_folder, tmp_path, monkeypatch
):
    """The scene field comes from its run and is not trained on; the exported folder starts worlds where its pictures were
    taken."""
    settings = foundation.Settings(batch=2, noise_samples=1, pool=PoolSettings(2), optimization=Optimization(warmup=1))
    folders = (town_config, data_folder, vae_folder)
    with pytest.raises(FileNotFoundError, match="--places, a run of train"):
        foundation.train(*folders, tmp_path / "run", settings, 0, None, foundation.Initial(depth=depth_folder))
    initial = foundation.Initial(depth=depth_folder, places=places_folder)
    foundation.train(*folders, tmp_path / "run", settings, 1, None, initial)
    taken = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    learnt = load_file(places_folder / stage.WEIGHTS)
    assert all(torch.equal(taken[f"priors.0.places.{name}"], value) for name, value in learnt.items())

    finder = tmp_path / "finder"
    finder.mkdir()
    network = Finder(scene_of(town_config).places.period, (town_config.height, town_config.width))
    save_file(network.state_dict(), finder / "finder.safetensors")
    (finder / "finder.json").write_text('{"finder_training": {"steps": 3}}')
    ways = (Network(tmp_path / "run"), vae_folder, data_folder, tmp_path / "exported")
    with pytest.raises(ValueError, match="--finder is needed by models that know a town"):
        export_with_priors(town_config, *ways)
    monkeypatch.setattr("train.land.held_out_psnr", lambda *_: ({"psnr": 1.0},))
    export_with_priors(town_config, *ways, Parts(places=places_folder, finder=finder))
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert manifest["finder"] == {"steps": 3} and manifest["places"]["steps"] == LEARNT
    monkeypatch.setattr(Finder, "find", None)  # poses of exported pictures are not searched for
    model, (drawn, poses) = WorldModel.load(tmp_path / "exported", device="cpu"), starting_pictures(town_config)
    number = len(STARTS) - 1
    picture = drawn[number * town_config.height : (number + 1) * town_config.height]
    state = model.start([picture], [""], [0])
    assert (*state_of(state.worlds).place[0].tolist(), float(state.worlds.yaw)) == poses[number]


def test_models_without_a_town_are_exported_without_relocalisation(config, tmp_path):
    with pytest.raises(ValueError, match="--finder is needed by models that know a town"):
        export_with_priors(config, Network(tmp_path), tmp_path, tmp_path, tmp_path, Parts(finder=tmp_path))


def test_finer_rays_begin_with_the_weights_of_coarser_ones(tmp_path):
    """Where rays of a token agree, four times as many give what one did."""
    tiny = PlacesConfig(period=8.0, cell=0.5, height=3.0, tables=((2.0, 8, 4),), width=16, look=4, rays=1)
    coarse, fine, other = (Places(replace(tiny, rays=rays), CameraConfig(), (2, 3), 5, 6) for rays in (1, 2, 3))
    save_file(coarse.state_dict(), tmp_path / "places.safetensors")
    load_places(fine, tmp_path)
    each = torch.randn(1, 1, 2, 3, 4 + 5)
    look = torch.randn(1, 4)

    def render(places: Places) -> torch.Tensor:
        rays = places.config.rays
        same = each.repeat_interleave(rays, 2).repeat_interleave(rays, 3)
        return places.painted(Rays(same[..., :3], same, same[..., 0]), look)

    torch.testing.assert_close(render(fine), render(coarse))
    save_file(fine.state_dict(), tmp_path / "places.safetensors")
    with pytest.raises(ValueError, match="does not hold the places"):
        load_places(other, tmp_path)


def test_larger_scene_fields_begin_with_the_weights_of_smaller_ones(tmp_path):
    """Without parts of voxels all looks as before; places of parts that do not fit are without them."""
    tiny = PlacesConfig(period=8.0, cell=0.5, height=3.0, tables=((2.0, 8, 4),), width=16, look=4)
    small = Places(tiny, CameraConfig(), (2, 3), 5, 6)
    small.stand(torch.randint(4, 90, small.distance.shape, dtype=torch.uint8, generator=generator("distance")))
    save_file(small.state_dict(), tmp_path / "places.safetensors")
    large = Places(replace(tiny, fine=2, bricks=5), CameraConfig(), (2, 3), 5, 6)
    load_places(large, tmp_path)
    place, view = torch.rand(1, 3, 2, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    look = torch.randn(1, 4)
    torch.testing.assert_close(large(place, view, view, look), small(place, view, view, look))
    assert not large.bricks.any() and torch.equal(large.field, small.field)


def test_parts_of_voxels_are_counted_where_the_run_before_had_none(
    town_config, data_folder, vae_folder, tmp_path, monkeypatch
):
    own = scene_of(town_config).places
    for name, nothing in (
        ("learn_views", None),
        ("learn_skies", None),
        ("learn_sky_words", {}),
        ("errors", ({}, None)),
    ):
        monkeypatch.setattr(stage, name, lambda *given, nothing=nothing, **named: nothing)
    monkeypatch.setattr(stage.Run, "sheet", lambda *given: None)
    whole = with_scene(town_config, places=replace(own, fine=1, bricks=0))
    quick(whole, (data_folder, vae_folder), tmp_path / "whole", 0)
    monkeypatch.setattr(stage, "count_voxels", None)
    after = quick(town_config, (data_folder, vae_folder), tmp_path / "parts", 0, before=tmp_path / "whole")
    assert (after["distance"] == PARTLY).sum() > 100 and after["bricks"].any()
    again = quick(town_config, (data_folder, vae_folder), tmp_path / "again", 0, before=tmp_path / "parts")
    assert torch.equal(again["distance"], after["distance"]) and torch.equal(again["bricks"], after["bricks"])

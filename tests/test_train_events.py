"""Training of event objects: from pairs of walks with an event and without, and from phrasings."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stopped import stopped_after
from test_events import content
from towns import streets

from train import events as stage
from train.data.event_pairs import Pairs, render_pairs
from train.events import Settings, draw
from train.street import phrasings
from train.street.growth import keep, known_in, load_events
from train.street.voxels import distance_field
from world_model.priors.config import EventsConfig, scene_of, with_scene
from world_model.priors.events import EXTENT, Events
from world_model.priors.places import Places
from world_model.text import build_text_encoder
from yume_gym.street.events import EVENTS
from yume_gym.street.keywords import normalise

SHIPPED = phrasings.PHRASINGS

QUICK = Settings(batch=4, lr=1e-1, pairs=Pairs(walks=6, blocks=3), captions=24, ema=0.9)


@pytest.fixture(scope="module")
def places(event_config) -> Places:
    """Random looks in a town of streets."""
    torch.manual_seed(3)
    dit = event_config.dit
    sizes = event_config.latent_size, dit.latent_channels, event_config.text.dim
    town = Places(scene_of(event_config).places, event_config.camera, *sizes)
    solid, _ = streets(event_config)
    town.stand(distance_field(solid, scene_of(event_config).places))
    return town


@pytest.fixture(scope="module")
def learnt(event_config, make_vae, places, tmp_path_factory):
    """(folder, train(out, steps))."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "HELD_OUT", 2)
        patch.setattr(stage, "load_vae", lambda *_: (make_vae(event_config), "print"))
        folder = tmp_path_factory.mktemp("events")
        shipped, few = json.loads(SHIPPED.read_text()), folder / "phrasings.json"  # words have no meaning here
        short = {name: {kind: texts[:1] for kind, texts in shipped[name].items()} for name in ("phrases", "fresh")}
        few.write_text(json.dumps({**short, "other": shipped["other"][:6]}))
        patch.setattr(phrasings, "PHRASINGS", few)
        patch.setattr(stage, "load_places", lambda net, _: net.load_state_dict(places.state_dict()))
        yield folder, lambda out, steps: stage.train(event_config, folder, folder, out, QUICK, steps, None)


def test_sprites_learn_what_events_change_and_training_resumes_exactly(learnt, event_config, make_vae, monkeypatch):
    folder, train = learnt
    whole, parted = folder / "whole", folder / "parted"
    train(whole, 60)
    metadata = json.loads((whole / "events.json").read_text())["events_training"]
    assert metadata["steps"] == 60 and metadata["phrasings"] > 0.8 and metadata["captions"] > 0.6
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", stopped_after(30))
        train(parted, 60)
    train(parted, 60)
    one, other = (torch.load(f / "checkpoint" / "custom_checkpoint_1.pkl", weights_only=True) for f in (whole, parted))
    assert all(torch.equal(one[name], other[name]) for name in one)
    events = Events(event_config)
    load_events(events, whole)
    encoder, length = build_text_encoder(event_config.text), event_config.text.event_tokens
    prompts = torch.stack([encoder.encode(EVENTS[name].phrases[0], length) for name in ("ufo", "fire", "snow")])
    assert events.read(prompts).tolist() == [0, 1, 2]
    pairs = load_file(whole / "pairs.safetensors")
    with torch.no_grad():
        rendered, truth, view = draw(events, pairs, torch.nonzero(pairs["walk"] >= 2)[:, 0])
    assert (rendered - truth).square().mean() < 0.7 * (view - truth).square().mean()
    with pytest.raises(FileNotFoundError, match=r"train\.events"):
        load_events(events, folder)


def test_more_kinds_are_learnt_without_changing_earlier_ones(learnt, event_config):
    """Earlier kinds look as they did, in every light."""
    folder, train = learnt
    before, after = folder / "before", folder / "after"
    train(before, 12)
    more = with_kinds(event_config, *scene_of(event_config).events.kinds, ("tram", 6.0, "street"))
    stage.train(more, folder, folder, after, QUICK, 60, None, before)
    old, new = Events(event_config), Events(more)
    load_events(old, before)
    load_events(new, after)
    known = known_in(before, more)
    assert known.kinds == 3
    assert {"looks", "mixtures", "sides", "path", "extent", "wording", "light.0.weight"} <= known.tensors.keys()
    state = new.state_dict()
    for name, value in known.tensors.items():
        assert torch.equal(state[name][tuple(slice(side) for side in value.shape)], value), name
    pairs, own = load_file(before / "pairs.safetensors"), load_file(after / "pairs.safetensors")
    assert set(own["kind"].tolist()) == {3}
    with torch.no_grad():
        rendered, paints = (draw(events, pairs, torch.arange(len(pairs["kind"])))[0] for events in (old, new))
        torch.testing.assert_close(paints, rendered, atol=1e-5, rtol=0)
        rendered, truth, view = draw(new, own, torch.nonzero(own["walk"] >= 2)[:, 0], taught=True)
    assert (rendered - truth).square().mean() < 0.9 * (view - truth).square().mean()
    assert new.extent[3] != EXTENT and new.lanes.isfinite().any()
    metadata, earlier = (json.loads((f / "events.json").read_text())["events_training"] for f in (after, before))
    assert metadata["painted/ufo"] == earlier["painted/ufo"]
    assert metadata["painted"] == pytest.approx(
        np.mean([metadata[f"painted/{kind}"] for kind in ("ufo", "fire", "tram")]), abs=1e-3
    )
    with pytest.raises(ValueError, match="nothing to learn"):
        known_in(after, more)
    with pytest.raises(ValueError, match="knows ufo, fire, snow, tram"):
        known_in(after, with_kinds(event_config, ("fire", 12.0, "facade"), ("ufo", 9.0, "open")))


def with_kinds(config, *kinds):
    return with_scene(config, events=EventsConfig(kinds, looks=2, width=8))


def test_earlier_lanes_stay_and_others_are_learnt(event_config, tmp_path):
    """Objects of earlier kinds that go along streets go where they went."""
    lanes = {}
    for how in ("street", "open"):
        config = with_kinds(event_config, ("car", 8.0, how))
        (tmp_path / how).mkdir()
        events = Events(config)
        events.lanes[0, 0] = 1.5
        save_file(events.state_dict(), tmp_path / how / "events.safetensors")
        (tmp_path / how / "config.json").write_text(config.to_json())
        (tmp_path / how / "events.json").write_text('{"events_training": {}}')
        more = with_kinds(event_config, ("car", 8.0, how), ("tram", 8.0, "street"))
        grown = Events(more)
        grown.lanes[0, 0] = 2.5
        keep(grown, known_in(tmp_path / how, more))
        lanes[how] = float(grown.lanes[0, 0])
    assert lanes == {"street": 1.5, "open": 2.5}


def test_pairs_differ_by_the_event_alone(event_config, places, make_vae):
    pairs = render_pairs(event_config, places, make_vae(event_config), QUICK.pairs)
    assert len(pairs["kind"]) == QUICK.pairs.walks * QUICK.pairs.blocks and set(pairs["kind"].tolist()) == {0, 1}
    change = (pairs["with"].float() - pairs["without"].float()).square().flatten(1).mean(dim=1)
    assert change.max() > 0.05  # some show it
    assert (torch.diff(pairs["age"].flatten(1), dim=1) > 0).all()
    for walk in range(QUICK.pairs.walks):
        assert len(pairs["course"][pairs["walk"] == walk].unique(dim=0)) == 1


def test_training_phrasings_differ_from_the_held_out_ones():
    """By the same rule as the street's own, and none twice."""
    shipped = json.loads(SHIPPED.read_text())
    assert set(shipped["phrases"]) == set(shipped["fresh"]) == set(EVENTS)
    known = [normalise(text) for kind in EVENTS.values() for text in kind.phrases + kind.held_out]
    lists = [*shipped["phrases"].values(), *shipped["fresh"].values(), shipped["other"]]
    texts = known + [normalise(text) for part in lists for text in part]
    assert len(set(texts)) == len(texts)
    for name, kind in EVENTS.items():
        for held_out, trained in itertools.product(kind.held_out, shipped["phrases"][name]):
            shared = content(held_out) & content(trained)
            assert len(shared) <= len(content(held_out)) / 3, (held_out, trained)


def test_a_billboard_is_as_large_as_what_an_object_changes(event_config):
    """A disc of known size around the middle of an object straight ahead; what lies farther out by a hundredth of it is
    left out."""
    events, metres, ahead = Events(event_config), 1.5, 6.0
    height, width, frames = event_config.height, event_config.width, 1
    focal, middle = event_config.camera.focal(width), (event_config.camera.eye_height, 0.0)
    row, column = np.mgrid[:height, :width] + 0.5
    right, up = (column - width / 2) / focal * ahead, middle[0] - (row - height / 2) / focal * ahead
    changed = torch.from_numpy(np.hypot(right, up - middle[0]) < metres)
    changed[0, 0] = True
    zero = torch.zeros(1, frames, dtype=torch.float64)
    pairs = {
        "kind": torch.tensor([1]),
        "place": torch.zeros(1, frames, 2, dtype=torch.float64),
        "yaw": zero,
        "pitch": zero,
        "course": torch.tensor([[0.0, ahead, 0.0]], dtype=torch.float64),
        "age": torch.zeros(1, frames, dtype=torch.int64),
        "centre": torch.tensor([[[0.0, 0.0, middle[0]]]]),
        "without": torch.zeros(1, 3, frames, height, width, dtype=torch.uint8),
        "with": (255 * changed.byte()).expand(1, 3, frames, height, width),
    }
    stage.learn_extent(events, pairs)
    assert events.extent.tolist() == [EXTENT, pytest.approx(metres, abs=0.35), EXTENT]


def test_lanes_are_learnt_from_trajectories_of_objects(event_config):
    events = Events(with_kinds(event_config, ("ufo", 9.0, "open"), ("car", 8.0, "street")))
    course = torch.tensor([[81.2, 4.0, 0.0], [1.2, 9.0, 2 * math.pi], [6.0, 17.0, -math.pi / 2], [9.0, 9.0, 0.0]])
    stage.learn_lanes(events, {"kind": torch.tensor([1, 1, 1, 0]), "course": course.double()})
    assert events.lanes[0, 0] == pytest.approx(1.2) and events.lanes[3, 0] == 17  # what is no car counts for nothing
    assert int(events.lanes.isfinite().sum()) == 2

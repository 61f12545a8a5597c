"""The one config type: presets, derived sizes, and JSON that other versions cannot be mistaken for."""

from __future__ import annotations

import dataclasses
import json

import pytest

from world_model.config import ModelConfig, OutputConfig, Tiers
from world_model.presets import PRESETS, get_preset, preset_like
from world_model.priors.config import EventsConfig, PlacesConfig, SceneConfig


@pytest.mark.parametrize("name", PRESETS)
def test_json_brings_back_the_same_config(name):
    config = PRESETS[name]
    assert config.name == name
    assert ModelConfig.from_json(config.to_json()) == config
    assert hash(ModelConfig.from_json(config.to_json())) == hash(config)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["debug"].dit.dim = 1


def test_the_released_sizes():
    config = PRESETS["yume-5b"]
    assert (config.dit.dim, config.dit.layer.ffn_dim, config.dit.heads, config.dit.layers) == (3072, 14336, 24, 30)
    assert (config.dit.head_dim, config.dit.history.channel.dim, config.dit.history.channel.patch) == (
        128,
        96,
        (8, 4, 4),
    )
    assert (config.latent_size, config.token_grid, config.frames_per_block) == ((44, 80), (8, 22, 40), 32)
    assert config.text.event_tokens + config.text.action_tokens == 512
    assert config.dit.history.packing == "released"


@pytest.mark.parametrize("name", PRESETS)
def test_derived_sizes_fit_together(name):
    config = PRESETS[name]
    rows, columns = config.latent_size
    assert (rows * config.vae.spatial_stride, columns * config.vae.spatial_stride) == (config.height, config.width)
    frames, token_rows, token_columns = config.token_grid
    patch = config.dit.patch
    assert (frames * patch[0], token_rows * patch[1], token_columns * patch[2]) == (config.block_latents, rows, columns)


def test_tiers_count_their_recent_frames():
    assert Tiers(recent=((1, 1), (2, 2), (5, 4))).recent_frames == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": {"height": 36}}, "multiple of 8 x 8 pixels.*got 36 x 48.*nearest that fits is 32 x 48"),
        ({"video": {"width": 50}}, "multiple of 8 x 8 pixels.*got 32 x 50.*32 x 48"),
        ({"dit": {"heads": 3}}, "3 heads do not divide width 32"),
        ({"vae": {"latent_channels": 4}}, "channels must be those"),
        ({"text": {"dim": 20}}, "channels must be those"),
        ({"dit": {"output": OutputConfig()}}, "priors say where a data prediction starts from"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    config = PRESETS["debug"]
    fields = {name: dataclasses.replace(getattr(config, name), **part) for name, part in changes.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **fields)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SceneConfig(depth=0), "depth of 1 or more"),
        (lambda: SceneConfig(depth=4, events=EventsConfig()), "events of a scene prior.*need places"),
        (lambda: PlacesConfig(towns=(3, 3)), "places.towns must be different seeds"),
        (lambda: PlacesConfig(fine=2), "places.bricks more than 0"),
    ],
)
def test_scenes_that_cannot_work_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_kind_of_prior_is_named():
    values = json.loads(PRESETS["debug"].to_json())
    values["priors"][0]["kind"] = "oracle"
    with pytest.raises(ValueError, match="unknown kind of prior 'oracle': known are scene"):
        ModelConfig.from_json(json.dumps(values))


def test_an_unknown_field_is_named():
    values = json.loads(PRESETS["debug"].to_json())
    values["dit"]["history"]["channel"]["depth"] = 3
    with pytest.raises(ValueError, match="ChannelConfig has no field 'depth'"):
        ModelConfig.from_json(json.dumps(values))


def test_a_missing_field_is_named():
    values = json.loads(PRESETS["debug"].to_json())
    del values["video"]["fps"]
    with pytest.raises(ValueError, match="'fps'"):
        ModelConfig.from_json(json.dumps(values))


def test_the_file_of_an_older_version_is_refused():
    values = json.loads(PRESETS["debug"].to_json())
    values = {**values.pop("video"), **values}
    with pytest.raises(ValueError, match=r"ModelConfig has no field 'block_latents': .* written by another version"):
        ModelConfig.from_json(json.dumps(values))


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'strete'.*debug, street, yume-5b"):
        get_preset("strete")


def test_weights_that_are_no_preset_have_the_street_of_one():
    street = get_preset("street")
    assert (
        preset_like(dataclasses.replace(street, name="other")) == "street"
        and preset_like(get_preset("debug")) == "debug"
    )
    faster = dataclasses.replace(street.camera, walk_speed=9.0)
    with pytest.raises(ValueError, match="no preset has the pictures, blocks and camera of 'street'"):
        preset_like(dataclasses.replace(street, camera=faster))

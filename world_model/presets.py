"""The models that have a name: `PRESETS`. Sizes differ, code does not: nothing asks which preset it is.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses

from world_model.config import (
    ChannelConfig,
    DiTConfig,
    EmbeddingConfig,
    HistoryConfig,
    LayerConfig,
    ModelConfig,
    OutputConfig,
    SamplerConfig,
    T5Config,
    TextConfig,
    Tiers,
    VAEConfig,
    VideoConfig,
)
from world_model.priors.config import EventsConfig, PlacesConfig, SceneConfig

_STREET_DIT = DiTConfig(
    dim=160, heads=4, layers=6, patch=(1, 1, 1), latent_channels=32, text_dim=384,
    layer=LayerConfig(ffn_dim=480, mlp_conv=True, activation="relu_squared"),
    embedding=EmbeddingConfig(freq_dim=64, positions="view_sphere", screen=True, pooled_action=True),
    history=HistoryConfig(
        packing=Tiers(recent=((1, 1), (3, 2), (8, 4)), initial=2, old=(2, 2)),
        channel=ChannelConfig(dim=48, heads=3, patch=(4, 4, 4), decay=0.95),
        attention="cached", max_age=128,
    ),
    output=OutputConfig(prediction="data"),
)  # fmt: skip

_STREET_EVENTS = (
    ("fireworks", 22.0, "open"), ("ufo", 16.0, "open"), ("ghost", 7.0, "open"), ("fire", 12.0, "facade"),
    ("crowd", 8.0, "open"), ("car", 8.0, "street"), ("balloon", 14.0, "open"), ("heavy_rain", 0.0, ""), ("snow", 0.0, ""),
    ("fog", 0.0, ""), ("night", 0.0, ""), ("sunset", 0.0, ""), ("sun", 0.0, ""),
    ("tornado", 18.0, "open"), ("dinosaur", 10.0, "open"), ("tram", 8.0, "street"), ("bubbles", 8.0, "open"),
)  # fmt: skip
_STREET_SCENE = SceneConfig(
    depth=12,
    album=12,
    places=PlacesConfig(towns=(0, 1), fine=4, bricks=20480, rays=4),
    events=EventsConfig(_STREET_EVENTS),
)

_DEBUG_DIT = dataclasses.replace(
    _STREET_DIT, dim=32, heads=2, layers=2, latent_channels=8, text_dim=16,
    layer=dataclasses.replace(_STREET_DIT.layer, ffn_dim=64),
    embedding=dataclasses.replace(_STREET_DIT.embedding, freq_dim=16),
    history=dataclasses.replace(
        _STREET_DIT.history,
        packing=Tiers(recent=((1, 1), (2, 2)), initial=2, old=(2, 2)),
        channel=ChannelConfig(dim=16, heads=2, patch=(2, 2, 2), decay=0.9),
    ),
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "street": ModelConfig(
        name="street",
        video=VideoConfig(height=64, width=96, fps=8, block_latents=4, start_latents=4),
        dit=_STREET_DIT,
        vae=VAEConfig(kind="patch", spatial_stride=8, temporal_stride=1, latent_channels=32, width=128, depth=2),
        text=TextConfig(kind="minilm", dim=384, event_tokens=32, action_tokens=32),
        sampler=SamplerConfig(steps=2, shift=3.0, start_steps=2, temperature=0.75, start_temperature=0.5),
        priors=(_STREET_SCENE,),
    ),
    "yume-5b": ModelConfig(
        name="yume-5b",
        video=VideoConfig(height=704, width=1280, fps=16, block_latents=8, start_latents=5),
        dit=DiTConfig(),
        vae=VAEConfig(width=160, depth=2, decoder_width=256),
        text=TextConfig(
            joined=True,
            prefix="First-person perspective.",
            t5=T5Config(layers=24, heads=64, head_dim=64, ffn_dim=10240, vocabulary=256384),
        ),
    ),
    "debug": ModelConfig(
        name="debug",
        video=VideoConfig(height=32, width=48, fps=8, block_latents=2, start_latents=2),
        dit=_DEBUG_DIT,
        vae=VAEConfig(kind="patch", spatial_stride=8, temporal_stride=2, latent_channels=8, width=8, depth=1),
        text=TextConfig(kind="hashed", dim=16, event_tokens=8, action_tokens=16),
        sampler=SamplerConfig(steps=4, shift=3.0),
        priors=(SceneConfig(depth=4, album=3),),
    ),
}


def get_preset(name: str) -> ModelConfig:
    """The preset called `name`. Raises ValueError naming the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}: known presets are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def preset_like(config: ModelConfig) -> str:
    """The name of the preset with the pictures, blocks and camera of `config`, which may be of weights that are no preset.

    Raises ValueError where there is none.
    """
    for name, preset in PRESETS.items():
        if (preset.video, preset.frames_per_block, preset.camera) == (
            config.video,
            config.frames_per_block,
            config.camera,
        ):
            return name
    raise ValueError(f"no preset has the pictures, blocks and camera of {config.name!r}")

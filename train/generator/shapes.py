"""The model of a recording: everything of its `ModelConfig` that the recording decides, and a generator's size."""

from __future__ import annotations

import dataclasses

from train.recordings import Recording
from world_model.config import (
    ChannelConfig,
    DiTConfig,
    EmbeddingConfig,
    HistoryConfig,
    LayerConfig,
    ModelConfig,
    OutputConfig,
    SamplerConfig,
    TextConfig,
    Tiers,
    VAEConfig,
    VideoConfig,
)

NO_TEXT = TextConfig(kind="none", dim=0, event_tokens=0, action_tokens=0)
MINILM = TextConfig(kind="minilm", dim=384, event_tokens=8, action_tokens=0)  # longer texts are averaged to these

# (width, feed-forward width, heads, layers) of a generator
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (48, 96, 2, 2),
    "small": (128, 384, 4, 4),
    "medium": (192, 576, 6, 6),
    "large": (384, 1152, 6, 6),
}
FLOW_BLOCKS = 6  # of first-person worlds: how far away things are is seen from all around them
KEPT_SIZE = 1  # of first-person worlds, in which what was in view stays
FINE_TOKENS = 64  # of a picture; larger pictures are read in tokens of 2 x 2 latent places


def recorded_config(
    name: str, recording: Recording, has_text: bool, size: str = "small", flow: bool = True
) -> ModelConfig:
    """A generator for worlds like those of a recording. With `flow` it moves four earlier pictures, else none
    (appearance_flow.py).

    Raises ValueError for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of a generator: choose one of {', '.join(SIZES)}")
    dim, hidden, heads, layers = SIZES[size]
    captions = recording.action.kind == "first_person"
    text = MINILM if has_text or captions else NO_TEXT
    if captions:
        text = dataclasses.replace(text, action_tokens=32)
    latent, block, stride = 48, recording.frames_per_step, 8
    places = recording.height // stride, recording.width // stride
    fold = 2 if places[0] * places[1] > FINE_TOKENS and not any(n % 2 for n in places) else 1
    dit = DiTConfig(
        dim=dim,
        heads=heads,
        layers=layers,
        patch=(block, fold, fold),
        latent_channels=latent,
        text_dim=text.dim,
        layer=LayerConfig(ffn_dim=hidden, mlp_conv=fold == 1, activation="relu_squared"),
        embedding=EmbeddingConfig(
            freq_dim=64,
            positions="view_sphere" if captions else "centred",
            screen=True,
            pooled_action=True,
            pooled_text=text.kind != "none",
        ),
        history=HistoryConfig(
            packing=history_tiers(block, fold),
            channel=ChannelConfig(dim=48, heads=3, patch=(block, 4, 4), decay=0.95),
            attention="cached",
            recent_frames=4,
            max_age=128,
        ),
        output=OutputConfig(
            prediction="data",
            residual=True,
            flow_layer=layers // 2 if flow else 0,
            flow_blocks=FLOW_BLOCKS if flow and captions else OutputConfig.flow_blocks,
            kept_size=KEPT_SIZE if flow and captions else 0,
        ),
    )
    return ModelConfig(
        name=name,
        video=VideoConfig(
            height=recording.height,
            width=recording.width,
            fps=max(1, round(recording.fps)),
            block_latents=block,
            start_latents=block,
        ),
        dit=dit,
        vae=VAEConfig(
            kind="patch", spatial_stride=stride, temporal_stride=1, latent_channels=latent, width=64, depth=2
        ),
        text=text,
        sampler=SamplerConfig(steps=3, shift=1.0, start_steps=3),
        action=recording.action,
    )


def history_tiers(block: int, fold: int) -> Tiers:
    """History of a generator whose blocks have so many frames, and whose tokens are `fold` latent places wide.

    The newest frames are seen in full besides (`HistoryConfig.recent_frames`), so that here they are coarse.
    """
    recent = (block, 2), (max(4, 3 * block), 4)
    return Tiers(recent, initial=1, old=(4, 2)) if fold > 1 else Tiers(recent, initial=2, old=(2, 4))

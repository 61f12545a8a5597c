"""The reference numbers' tiny transformer, built from their folder, and how a case's inputs are handed to it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from world_model.conditions import Conditions, Target
from world_model.config import (
    ChannelConfig,
    DiTConfig,
    EmbeddingConfig,
    HistoryConfig,
    LayerConfig,
    ModelConfig,
    TextConfig,
    VAEConfig,
    VideoConfig,
)
from world_model.dit import DiT
from world_model.tscm import History
from world_model.weights import load_released

FIXTURES = Path(os.environ.get("YUME_FIXTURES") or Path(__file__).resolve().parents[2] / "shared" / "fixtures")


def cases(folder: str) -> list[str]:
    """Names of the case files in a folder of fixtures; empty where the folder is missing."""
    return sorted(path.stem for path in (FIXTURES / folder).glob("*.safetensors") if path.stem != "weights")


def tiny_config(rows: int, columns: int) -> ModelConfig:
    """The fixtures' tiny model for a latent of rows x columns (what does not fill a patch is not predicted)."""
    sizes = json.loads((FIXTURES / "wan_base" / "config.json").read_text())["config"]
    patch = tuple(sizes["patch_size"])
    vae = VAEConfig(latent_channels=sizes["in_dim"])
    return ModelConfig(
        name="tiny",
        video=VideoConfig(
            height=rows // patch[1] * patch[1] * vae.spatial_stride,
            width=columns // patch[2] * patch[2] * vae.spatial_stride,
            fps=16,
            block_latents=8,
            start_latents=5,
        ),
        dit=DiTConfig(
            dim=sizes["dim"],
            heads=sizes["num_heads"],
            layers=sizes["num_layers"],
            patch=patch,
            latent_channels=sizes["in_dim"],
            text_dim=sizes["text_dim"],
            layer=LayerConfig(ffn_dim=sizes["ffn_dim"], eps=sizes["eps"]),
            embedding=EmbeddingConfig(freq_dim=sizes["freq_dim"]),
            history=HistoryConfig(channel=ChannelConfig(dim=24, heads=2)),
        ),
        vae=vae,
        text=TextConfig(kind="hashed", dim=sizes["text_dim"], event_tokens=sizes["text_len"] - 4, action_tokens=4),
    )


@dataclass(frozen=True)
class Reference:
    """The tiny model with the reference weights, and how a case's inputs are handed to it."""

    dit: DiT

    def conditions(self, context: Tensor, history: Tensor | None, tail: int) -> Conditions:
        """context [n, text_dim] unpadded, history [C, F, h, w] or None: conditions of a block of `tail` latents."""
        text = self.dit.config.text
        padded = torch.nn.functional.pad(context, (0, 0, 0, text.event_tokens + text.action_tokens - context.shape[0]))
        return self.dit.encode_conditions(
            past(history) if history is not None else None, None, padded[None], target(tail)
        )


def past(latents: Tensor) -> History:
    frames = latents.shape[1]
    still = torch.zeros(1, frames, dtype=torch.float64)
    return History(latents[None], torch.arange(-frames, 0)[None], still, still, torch.ones(1, frames, dtype=torch.bool))


def target(frames: int) -> Target:
    still = torch.zeros(1, frames, dtype=torch.float64)
    return Target(still, still, torch.arange(frames)[None])


def build(weights: dict[str, Tensor], rows: int, columns: int) -> Reference:
    with torch.device("meta"):
        dit = DiT(tiny_config(rows, columns))
    load_released(dit, weights)
    return Reference(dit.eval().requires_grad_(False))


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())

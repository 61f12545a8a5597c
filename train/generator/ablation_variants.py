"""The variants of a generator that `python -m train.generator.ablate` compares: other histories, with and without Self-Forcing."""

from __future__ import annotations

from dataclasses import replace

import torch

from train.engine.variants import Variant
from train.generator import foundation
from train.street_world import CPU, GPU
from world_model import baselines
from world_model.config import ModelConfig, Tiers
from world_model.sources import SOURCES

Made = tuple[ModelConfig, foundation.Settings]
BLOCKS = 20  # that a world of training lives at most; full history holds so many


def tokens_of(config: ModelConfig, ratio: int) -> int:
    """History tokens of a frame that is read in patches of `ratio` times the patch size."""
    sides = zip(config.latent_size, config.dit.patch[1:])
    rows, columns = (-(-side // (ratio * patch)) for side, patch in sides)
    return rows * columns


def window(config: ModelConfig) -> Tiers:
    """The first frame and the newest ones, about as many tokens as the model's tiers have. The newest are of the finest size.

    Appearance flow moves pictures of `SOURCES` blocks, which a history must hold. Where that is more than the finest size allows,
    the rest is of the model's coarsest size. Raises ValueError for a model without tiers.
    """
    packing = config.dit.history.packing
    if not isinstance(packing, Tiers):
        raise ValueError(
            f"{config.name} has no Tiers, which ablations vary: choose a model with them (train.street_world)"
        )
    plain = baselines.window(packing)
    needed = 1 + (SOURCES - 1) * config.block_latents if config.dit.output.flow_layer else 0
    if plain.recent_frames >= needed:
        return plain
    coarse = max(ratio for _, ratio in packing.recent)
    budget = sum(count * tokens_of(config, ratio) for count, ratio in (*packing.recent, packing.old))
    spare = budget - needed * tokens_of(config, coarse)
    fine = max(1, spare // max(1, tokens_of(config, 1) - tokens_of(config, coarse)))
    return Tiers(recent=((fine, 1), (needed - fine, coarse)), initial=packing.initial, old=(0, 1))


def everything(config: ModelConfig) -> Tiers:
    """`BLOCKS` blocks and the start picture at the finest size: nothing is dropped or shrunk while a world of training or a rollout
    of 10 s lives. The buffer is that long from the start, so that tokens are constant."""
    return Tiers(recent=((BLOCKS * config.block_latents, 1),), initial=1, old=(0, 1))


TRAINED = (
    Variant("tscm", "the model as it is"),
    Variant("spatial-only", "no channel path", {"channel": None}),
    Variant("sliding-window", "newest frames only, about as many tokens", {"packing": window, "channel": None}),
    Variant("full-history", f"all frames of {BLOCKS} blocks, finest size", {"packing": everything, "channel": None}),
    Variant("without-self-forcing", "histories are recorded ones", self_forcing={"begin": 1.0, "share": 0.0}),
    Variant("with-self-forcing", "half of the histories are its own", self_forcing={"begin": 0.0, "share": 0.5}),
)


def settings_on(device: torch.device) -> foundation.Settings:
    """The foundation's numbers in `train.street_world`, with a third of its learning rate and worlds of at most `BLOCKS`."""
    base = (GPU if device.type == "cuda" else CPU).foundation
    return replace(
        base,
        longest=BLOCKS,
        optimization=replace(base.optimization, lr=base.optimization.lr / 3, warmup=10),
        self_generated=replace(base.self_generated, episode_length=BLOCKS),
    )


def variants_of(config: ModelConfig, settings: foundation.Settings) -> tuple[dict[str, Made], dict[str, str]]:
    """The model and settings of each of `TRAINED`; and those left out, which are the same as an earlier one: its name."""
    found: dict[str, Made] = {}
    same: dict[str, str] = {}
    for variant in TRAINED:
        own = replace(settings.self_generated, **variant.self_forcing)
        made = config.with_history(**variant.history_of(config)), replace(settings, self_generated=own)
        earlier = [name for name, other in found.items() if other == made]
        if earlier:
            same[variant.name] = earlier[0]
        else:
            found[variant.name] = made
    return found, same

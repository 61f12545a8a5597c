"""Numbers of the authors' public model, matched: every case in the folder that YUME_FIXTURES names.

The default is `shared/fixtures` beside the repository. Tolerances are those of the fixtures' README for an implementation with
float64 sinusoids and rotary tables, where only the order of summation is left to differ.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from world_model import flow
from world_model.config import PRESETS, ChannelConfig, DiTConfig, ModelConfig, TextConfig, VAEConfig
from world_model.dit import Conditions, DiT, Target
from world_model.rollout import denoise_block
from world_model.tscm import History
from world_model.weights import load_released

FIXTURES = Path(os.environ.get("YUME_FIXTURES") or Path(__file__).resolve().parents[2] / "shared" / "fixtures")
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no reference numbers in {FIXTURES}: set YUME_FIXTURES to their folder"
)

OUTPUT_TOLERANCE = 2e-5  # of a DiT output and of a sampler's final latent, float32 with float64 sinusoid and RoPE
TOKEN_TOLERANCE = 1e-5
PADDED = "padded_seq_len"  # extra zero tokens without a mask: informative, the authors' sampler never does it


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
        height=rows // patch[1] * patch[1] * vae.spatial_stride,
        width=columns // patch[2] * patch[2] * vae.spatial_stride,
        fps=16,
        block_latents=8,
        start_latents=5,
        dit=DiTConfig(
            dim=sizes["dim"],
            ffn_dim=sizes["ffn_dim"],
            heads=sizes["num_heads"],
            layers=sizes["num_layers"],
            patch=patch,
            latent_channels=sizes["in_dim"],
            text_dim=sizes["text_dim"],
            freq_dim=sizes["freq_dim"],
            eps=sizes["eps"],
            channel=ChannelConfig(dim=24, heads=2),
        ),
        vae=vae,
        text=TextConfig(kind="hashed", dim=sizes["text_dim"], event_tokens=sizes["text_len"] - 4, action_tokens=4),
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(FIXTURES / "wan_base" / "weights.safetensors").items()}


@dataclass(frozen=True)
class Reference:
    """The tiny model with the reference weights, and how a case's inputs are handed to it."""

    dit: DiT

    def conditions(self, context: Tensor, history: Tensor | None, tail: int) -> Conditions:
        """context [n, text_dim] unpadded, history [C, F, h, w] or None: conditions of a block of `tail` latents."""
        text = self.dit.config.text
        padded = torch.nn.functional.pad(context, (0, 0, 0, text.event_tokens + text.action_tokens - context.shape[0]))
        return self.dit.prepare(past(history) if history is not None else None, None, padded[None], target(tail))


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


# ---- one forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in cases("wan_base") if name != PADDED])
def test_forward_without_history(case, weights):
    facts = load_file(FIXTURES / "wan_base" / f"{case}.safetensors")
    latent = facts["latent"]
    reference = build(weights, *latent.shape[-2:])
    conditions = reference.conditions(facts["context"], None, latent.shape[1])
    output = reference.dit(latent[None], facts["timestep"].double().reshape(1, -1) / 1000, conditions)
    assert difference(output[0], facts["output"]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("case", cases("yume_packed"))
def test_forward_with_packed_history(case, weights):
    facts = load_file(FIXTURES / "yume_packed" / f"{case}.safetensors")
    expected = json.loads((FIXTURES / "yume_packed" / "index.json").read_text())["cases"][case]
    latent, timestep = facts["latent"].float(), facts["timestep"].double()
    history, noisy = latent[:, : expected["history_frames"]], latent[:, expected["history_frames"] :]
    reference = build(weights, *latent.shape[-2:])
    dit = reference.dit

    tokens, coordinates, grids = dit.pack(past(history), torch.zeros(1, dtype=torch.int64))
    predicted = dit.patch_embedding(noisy[None])
    tokens = torch.cat([tokens[0], predicted[0].flatten(1).T])
    running, still = sum(grid[0] for grid in grids), torch.zeros(1, noisy.shape[1])
    positions = dit._coordinates(still, still, still, tuple(predicted.shape[2:]), 1, running)
    positions = torch.cat([coordinates, positions], dim=1)[0]
    assert [list(grid) for grid in grids] == [g["grid_thw"] for g in expected["groups"] if g["role"] == "history"]
    assert tokens.shape[0] == expected["packed_tokens"]
    assert difference(tokens, facts["packed_tokens"]) < TOKEN_TOLERANCE
    assert torch.equal(positions, facts["rope_positions"].double())

    conditions = reference.conditions(facts["context"], history, noisy.shape[1])
    output = dit(noisy[None], timestep[:, -1] / 1000, conditions, history_sigma=float(timestep[0, 0]) / 1000)
    assert difference(output[0], facts["output"]) < OUTPUT_TOLERANCE


def test_history_at_another_noise_level_would_show(weights):
    """The tolerance can tell a mistake: the same case with its history at the target's level is far off."""
    facts = load_file(FIXTURES / "yume_packed" / "h007_4x6.safetensors")
    latent, sigma = facts["latent"].float(), float(facts["timestep"][0, -1]) / 1000
    reference = build(weights, *latent.shape[-2:])
    conditions = reference.conditions(facts["context"], latent[:, :7], 8)
    level = torch.tensor([sigma], dtype=torch.float64)
    assert difference(reference.dit(latent[None, :, 7:], level, conditions, sigma)[0], facts["output"]) > 1e-3


def real_grids() -> list[tuple[str, int]]:
    path = FIXTURES / "yume_packed" / "packing_table_real_grids.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    return [(size, int(length)) for size, sizes in table.items() for length in sizes["by_history"]]


@pytest.fixture(scope="module")
def full_size() -> DiT:
    with torch.device("meta"):
        return DiT(PRESETS["yume-5b"])


@pytest.mark.parametrize(("size", "length"), real_grids())
def test_packing_at_full_size(size, length, full_size):
    table = json.loads((FIXTURES / "yume_packed" / "packing_table_real_grids.json").read_text())[size]
    expected = table["by_history"][str(length)]
    *history, predicted = expected["groups"]
    latents = torch.empty(48, length, *table["latent_hw"], device="meta")
    tokens, _, grids = full_size.pack(past(latents), torch.zeros(1, dtype=torch.int64))
    assert [list(grid) for grid in grids] == [group["grid_thw"] for group in history]
    assert tokens.shape == (1, expected["history"], 3072)
    assert sum(grid[0] for grid in grids) == predicted["rope_t_start"]


# ---- the sampler ------------------------------------------------------------------------------------------------------


def schedules() -> list[str]:
    path = FIXTURES / "sampler" / "sigmas.npz"
    return sorted(np.load(path).files) if path.exists() else []


@pytest.mark.parametrize("name", schedules())
def test_noise_levels(name):
    shift, steps = (int(part.removeprefix(prefix)) for part, prefix in zip(name.split("_"), ("shift", "steps")))
    expected = np.load(FIXTURES / "sampler" / "sigmas.npz")[name]
    ours = flow.sigma_schedule(steps, shift).numpy()
    np.testing.assert_allclose(ours[:-1], expected, rtol=0, atol=1e-12)
    assert ours.dtype == np.float64
    assert ours[-1] == 0


@pytest.mark.parametrize("case", [name for name in cases("sampler") if "_steps" in name])
def test_sampled_block(case, weights):
    facts = load_file(FIXTURES / "sampler" / f"{case}.safetensors")
    noise = facts["noise_tail"]
    reference = build(weights, *noise.shape[-2:])
    conditions = reference.conditions(facts["context"], facts.get("history"), noise.shape[1])
    sigmas = torch.cat([facts["sigmas"], torch.zeros(1, dtype=torch.float64)])
    for step in range(1, len(sigmas) - 1):  # where the tail is before each step
        partial = denoise_block(reference.dit, conditions, noise[None], sigmas[: step + 1])
        assert difference(partial[0], facts[f"step{step}.tail_in"]) < OUTPUT_TOLERANCE
    assert (
        difference(denoise_block(reference.dit, conditions, noise[None], sigmas)[0], facts["final_latent"])
        < OUTPUT_TOLERANCE
    )


# ---- names ------------------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_the_released_ones(full_size):
    listed = json.loads((FIXTURES / "keys" / "yume5b_dit_original.json").read_text())["list"]
    released = {item["name"]: tuple(item["shape"]) for item in listed}
    ours = {name: tuple(value.shape) for name, value in full_size.state_dict().items()}
    assert released.items() <= ours.items()
    added = ours.keys() - released.keys()
    assert all(name.startswith("channel_embedding.") or ".channel." in name for name in added)
    assert len(added) == 2 + 30 * 13  # the patch embedding; five linears and three norms in each block


@torch.no_grad()
def test_released_weights_without_a_channel_path_give_the_output_of_a_network_without_one(weights):
    """The added branch starts at zero: with and without it, and whatever it remembers, the output is the same."""
    facts = load_file(FIXTURES / "yume_packed" / "h005_4x6.safetensors")
    latent, level = facts["latent"].float(), torch.tensor([0.7], dtype=torch.float64)
    outputs = []
    for channel in (ChannelConfig(dim=24, heads=2), None):
        config = tiny_config(*latent.shape[-2:])
        dit = DiT(replace(config, dit=replace(config.dit, channel=channel)))
        load_released(dit, weights)
        history = past(latent[:, :5])
        context = torch.nn.functional.pad(facts["context"], (0, 0, 0, 16 - facts["context"].shape[0]))[None]
        conditions = dit.prepare(history, dit.remember(history), context, target(8))
        outputs.append(dit(latent[None, :, 5:], level, conditions))
    assert torch.equal(*outputs)
    assert difference(outputs[0][0], facts["output"]) < OUTPUT_TOLERANCE


# ---- a second opinion -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers_transformer(weights):
    """diffusers' own implementation with the same weights; it has no packing."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")
    sizes = json.loads((FIXTURES / "wan_base" / "config.json").read_text())["config"]
    names = json.loads((FIXTURES / "keys" / "map_dit_original_to_diffusers.json").read_text())["map"]
    transformer = diffusers.WanTransformer3DModel(
        patch_size=tuple(sizes["patch_size"]),
        num_attention_heads=sizes["num_heads"],
        attention_head_dim=sizes["dim"] // sizes["num_heads"],
        in_channels=sizes["in_dim"],
        out_channels=sizes["out_dim"],
        text_dim=sizes["text_dim"],
        freq_dim=sizes["freq_dim"],
        ffn_dim=sizes["ffn_dim"],
        num_layers=sizes["num_layers"],
        cross_attn_norm=sizes["cross_attn_norm"],
        qk_norm="rms_norm_across_heads",
        eps=sizes["eps"],
    )
    transformer.load_state_dict({names[name]: value for name, value in weights.items() if name in names}, strict=True)
    return transformer.eval().requires_grad_(False)


@pytest.mark.parametrize("per_token", [False, True], ids=["one level", "a level a token"])
def test_agrees_with_diffusers(per_token, weights, diffusers_transformer):
    random = torch.Generator().manual_seed(11)
    x = torch.randn(1, 48, 4, 6, 8, generator=random)
    context = torch.randn(9, 32, generator=random)
    sigma = torch.rand(1, 4 * 3 * 4 if per_token else 1, generator=random)
    reference = build(weights, 6, 8)
    ours = reference.dit(x, sigma.double(), reference.conditions(context, None, 4))
    padded = torch.nn.functional.pad(context, (0, 0, 0, 16 - 9))[None]
    timestep = 1000 * (sigma if per_token else sigma[:, 0])
    theirs = diffusers_transformer(x, timestep, padded, return_dict=False)[0]
    assert difference(ours, theirs) < 2e-4  # their sinusoid is float32
    assert theirs.std() > 0.5

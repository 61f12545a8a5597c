"""Numbers of the authors' public model, matched: every case in the folder that YUME_FIXTURES names.

The default is `shared/fixtures` beside the repository. Tolerances are those of the fixtures' README for an implementation with
float64 sinusoids and rotary tables, where only the order of summation is left to differ.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference import FIXTURES, Reference, build, cases, difference, past, target, tiny_config
from safetensors.torch import load_file
from torch import Tensor

from world_model import flow
from world_model.checkpoint import Checkpoint, shapes_of
from world_model.config import ChannelConfig, VAEConfig
from world_model.dit import DiT
from world_model.presets import PRESETS
from world_model.released.umt5 import build_umt5, load_umt5, transformers_name
from world_model.released.umt5 import sizes as umt5_sizes
from world_model.released.wan_vae import WanVAE, diffusers_name
from world_model.rollout import denoise_block
from world_model.weights import load_released

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no reference numbers in {FIXTURES}: set YUME_FIXTURES to their folder"
)

OUTPUT_TOLERANCE = 2e-5  # of a DiT output and of a sampler's final latent, float32 with float64 sinusoid and RoPE
TOKEN_TOLERANCE = LATENT_TOLERANCE = 1e-5
PIXEL_TOLERANCE = 1e-4
PADDED = "padded_seq_len"  # extra zero tokens without a mask: informative, the authors' sampler never does it


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(FIXTURES / "wan_base" / "weights.safetensors").items()}


# ---- one forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in cases("wan_base") if name != PADDED])
def test_forward_without_history(case, weights):
    facts = load_file(FIXTURES / "wan_base" / f"{case}.safetensors")
    latent = facts["latent"]
    reference = build(weights, *latent.shape[-2:])
    conditions = reference.conditions(facts["context"], None, latent.shape[1])
    output = reference.dit(latent[None], facts["timestep"].double().reshape(1, -1) / 1000, conditions)
    assert difference(output[0], facts["output"]) < OUTPUT_TOLERANCE


def packed(case: str, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Reference, Tensor, Tensor]:
    """A case's file, the model for its grid, its history and its noisy tail."""
    facts = load_file(FIXTURES / "yume_packed" / f"{case}.safetensors")
    expected = json.loads((FIXTURES / "yume_packed" / "index.json").read_text())["cases"][case]
    latent = facts["latent"].float()
    history, noisy = latent[:, : expected["history_frames"]], latent[:, expected["history_frames"] :]
    return facts, build(weights, *latent.shape[-2:]), history, noisy


@pytest.mark.parametrize("case", cases("yume_packed"))
def test_forward_with_packed_history(case, weights):
    facts, reference, history, noisy = packed(case, weights)
    expected = json.loads((FIXTURES / "yume_packed" / "index.json").read_text())["cases"][case]
    timestep, dit = facts["timestep"].double(), reference.dit

    tokens, coordinates, grids = dit.pack(past(history), torch.zeros(1, dtype=torch.int64))
    predicted = dit.patch_embedding(noisy[None])
    tokens = torch.cat([tokens[0], predicted[0].flatten(1).T])
    running, still = sum(grid[0] for grid in grids), torch.zeros(1, noisy.shape[1])
    positions = dit.positions.tokens(still, still, still, tuple(predicted.shape[2:]), 1, running)
    positions = torch.cat([coordinates, positions], dim=1)[0]
    assert [list(grid) for grid in grids] == [g["grid_thw"] for g in expected["groups"] if g["role"] == "history"]
    assert tokens.shape[0] == expected["packed_tokens"]
    assert difference(tokens, facts["packed_tokens"]) < TOKEN_TOLERANCE
    assert torch.equal(positions, facts["rope_positions"].double())

    conditions = reference.conditions(facts["context"], history, noisy.shape[1])
    output = dit(noisy[None], timestep[:, -1] / 1000, conditions, history_sigma=float(timestep[0, 0]) / 1000)
    assert difference(output[0], facts["output"]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("case", cases("yume_packed")[:1])
def test_history_at_another_noise_level_would_show(case, weights):
    """The tolerance can tell a mistake: the same case with its history at the target's level is far off."""
    facts, reference, history, noisy = packed(case, weights)
    sigma = float(facts["timestep"][0, -1]) / 1000
    conditions = reference.conditions(facts["context"], history, noisy.shape[1])
    level = torch.tensor([sigma], dtype=torch.float64)
    assert difference(reference.dit(noisy[None], level, conditions, sigma)[0], facts["output"]) > 1e-3


@pytest.mark.parametrize("case", cases("yume_packed")[:3])
def test_bfloat16_stays_near(case, weights):
    """Weights in bfloat16 with time embedding and head computed in float32, as Wan does."""
    rounded = {name: value.bfloat16() for name, value in weights.items()}
    facts, reference, history, noisy = packed(case, rounded)
    conditions = reference.conditions(facts["context"].bfloat16(), history, noisy.shape[1])
    level = facts["timestep"][:, -1].double() / 1000
    history_sigma = float(facts["timestep"][0, 0]) / 1000
    output = reference.dit(noisy[None], level, conditions, history_sigma=history_sigma)
    assert output.dtype == torch.float32
    assert difference(output[0], facts["output"]) < 0.1
    precise = build({name: value.float() for name, value in rounded.items()}, *noisy.shape[-2:])
    for ours, theirs in zip(
        reference.dit._time(1000 * level[:, None], None), precise.dit._time(1000 * level[:, None], None)
    ):
        assert torch.equal(ours, theirs)


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


# ---- the autoencoder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan_vae() -> WanVAE:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")
    sizes = json.loads((FIXTURES / "vae22" / "summary.json").read_text())["config"]
    with torch.device("meta"):
        vae = WanVAE(VAEConfig(width=sizes["dim"], decoder_width=sizes["dec_dim"], depth=sizes["num_res_blocks"]))
    state = Checkpoint(FIXTURES / "vae22" / "weights.safetensors", diffusers_name).read(torch.float32, "cpu")
    vae.model.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize("case", cases("vae22"))
def test_autoencoder(case, wan_vae):
    facts = load_file(FIXTURES / "vae22" / f"{case}.safetensors")
    latent = facts["latent"]
    if "video" in facts:
        assert difference(wan_vae.encode_clip(facts["video"].float()[None])[0], latent) < LATENT_TOLERANCE
    if "decoded" in facts:
        whole, _ = wan_vae.decode(latent[None])
        assert (
            difference(whole[0, :, 3:], facts["decoded"]) < PIXEL_TOLERANCE
        )  # the first picture stands still for four frames
        cache, blocks = None, []
        for block in latent[None].split([1, latent.shape[1] - 1] if latent.shape[1] > 1 else 1, dim=2):
            video, cache = wan_vae.decode(block, cache)
            assert video.shape[2] == 4 * block.shape[2]
            blocks.append(video)
        assert difference(torch.cat(blocks, dim=2), whole) < PIXEL_TOLERANCE


@pytest.mark.parametrize("case", cases("sampler"))
def test_pictures_of_a_sampled_block_and_history_of_a_picture(case, wan_vae):
    facts = load_file(FIXTURES / "sampler" / f"{case}.safetensors")
    if "decoded_pixels" in facts:
        video, _ = wan_vae.decode(facts["final_latent"][None])
        assert difference(video[0, :, 3:], facts["decoded_pixels"].float()) < 2e-3  # stored as float16
    if "image" in facts:  # sixteen copies of the picture and itself: five latents, from the protocol's 5 x 4 frames
        video = facts["image"].float()[None, :, None].expand(-1, -1, 20, -1, -1)
        assert difference(wan_vae.encode(video)[0], facts["history_latent"]) < LATENT_TOLERANCE


# ---- the text encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_text_encoder(layout, tmp_path):
    original = load_file(FIXTURES / "umt5" / "weights.safetensors")
    path = tmp_path / "weights.pth"
    torch.save(original if layout == "original" else {transformers_name(n): v for n, v in original.items()}, path)
    checkpoint = Checkpoint(path, transformers_name)
    model = load_umt5(umt5_sizes(checkpoint.shapes, 448, 64), checkpoint, torch.float32, "cpu")
    facts = load_file(FIXTURES / "umt5" / "cases.safetensors")
    for case in sorted({name.split(".")[0] for name in facts}):
        expected, mask = facts[f"{case}.output"], facts[f"{case}.attention_mask"]
        hidden = model(facts[f"{case}.input_ids"], attention_mask=mask).last_hidden_state
        assert difference(hidden[0, : len(expected)], expected) < 1e-4
        short = slice(None, len(expected))  # real tokens alone give the same: padding costs nothing
        hidden = model(facts[f"{case}.input_ids"][:, short], attention_mask=mask[:, short]).last_hidden_state
        assert difference(hidden[0], expected) < 1e-4


# ---- names ------------------------------------------------------------------------------------------------------------


def listed(name: str) -> dict[str, tuple[int, ...]]:
    entries = json.loads((FIXTURES / "keys" / f"{name}.json").read_text())["list"]
    return {entry["name"]: tuple(entry["shape"]) for entry in entries}


def test_autoencoder_at_full_size_has_the_released_names_and_shapes():
    with torch.device("meta"):
        ours = shapes_of(WanVAE(PRESETS["yume-5b"].vae).model.state_dict())
    assert ours == listed("wan22_vae_diffusers")
    assert ours == {diffusers_name(name): shape for name, shape in listed("wan22_vae_original").items()}
    table = json.loads((FIXTURES / "keys" / "map_vae_original_to_diffusers.json").read_text())["map"]
    assert {name: diffusers_name(name) for name in table} == table


def test_text_encoder_at_full_size_has_the_released_names_and_shapes():
    ours = {name: tuple(value.shape) for name, value in build_umt5(PRESETS["yume-5b"].text).named_parameters()}
    released = {transformers_name(name): shape for name, shape in listed("umt5_xxl_encoder_transformers").items()}
    assert ours == {name: shape for name, shape in released.items() if name}
    assert ours == {transformers_name(name): shape for name, shape in listed("umt5_xxl_encoder_original").items()}
    table = json.loads((FIXTURES / "keys" / "map_umt5_original_to_transformers.json").read_text())["map"]
    assert all(transformers_name(name) == (new if isinstance(new, str) else new[0]) for name, new in table.items())


def test_names_and_shapes_are_the_released_ones(full_size):
    released, ours = listed("yume5b_dit_original"), shapes_of(full_size.state_dict())
    assert released.items() <= ours.items()
    added = ours.keys() - released.keys()
    assert all(name.startswith("channel_embedding.") or ".channel." in name for name in added)
    assert len(added) == 2 + 30 * 13  # the patch embedding; five linears and three norms in each block


@torch.no_grad()
@pytest.mark.parametrize("case", cases("yume_packed")[:1])
def test_released_weights_without_a_channel_path_give_the_output_of_a_network_without_one(case, weights):
    """The added branch starts at zero: with and without it, and whatever it remembers, the output is the same."""
    facts, _, latents, noisy = packed(case, weights)
    level = facts["timestep"][:, -1].double() / 1000
    outputs = []
    for channel in (ChannelConfig(dim=24, heads=2), None):
        config = tiny_config(*noisy.shape[-2:])
        dit = DiT(config.with_history(channel=channel))
        load_released(dit, weights)
        history = past(latents)
        context = torch.nn.functional.pad(facts["context"], (0, 0, 0, 16 - facts["context"].shape[0]))[None]
        conditions = dit.encode_conditions(history, dit.encode_memory(history), context, target(noisy.shape[1]))
        outputs.append(dit(noisy[None], level, conditions, history_sigma=float(facts["timestep"][0, 0]) / 1000))
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

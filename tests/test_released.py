"""Released weights in the released layouts, at a shrunken size: found, checked by tensor, loaded by folder, and dreaming."""

from __future__ import annotations

import pickle

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'yume-gym[yume-5b]'")

from shrunken import SHRUNKEN

import yume_gym  # noqa: F401
from world_model import flow
from world_model.actions import Action
from world_model.conditions import Target
from world_model.model import WorldModel
from world_model.released.files import open_release, read_dit, read_vae
from world_model.released.placement import LoadOptions, memory
from world_model.rollout import block_noise, denoise_block

SIZE = (32, 64)


@pytest.fixture(scope="module")
def model(original_release) -> WorldModel:
    return WorldModel.load(original_release, device="cpu", dtype="float32", size=SIZE)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


# ---- dreaming ---------------------------------------------------------------------------------------------------------


def walk(env: gymnasium.Env, options: dict) -> list[np.ndarray]:
    """Frames of a reset and two steps; saving and restoring in between changes nothing."""
    seen = [env.reset(seed=3, options=options)[1]["frames"], env.step(Action.from_keys("W").index)[-1]["frames"]]
    state = pickle.loads(pickle.dumps(env.unwrapped.get_state()))
    once = env.step(Action.from_keys("", "→").index)[-1]["frames"]
    env.unwrapped.set_state(state)
    observation, _, _, _, info = env.step(Action.from_keys("", "→").index)
    assert (info["frames"] == once).all()
    assert (observation == once[-1]).all()
    return [*seen, once]


def test_both_layouts_walk_the_same_worlds(original_release, sharded_release, picture):
    walks = []
    for place in (original_release, sharded_release):
        env = gymnasium.make("YumeWorld-v0", model=str(place), size=SIZE, device="cpu", dtype="float32")
        assert env.observation_space.shape == (*SIZE, 3)
        walks.append(walk(env, {"image": picture}) + walk(env, {"text": "a street at night"}))
    for ours, theirs in zip(*walks, strict=True):
        assert ours.shape == (32, *SIZE, 3)
        assert (ours == theirs).all()
    reset, first, second = walks[0][:3]
    assert (reset[0] == picture).all()
    assert (first != second).any()


def test_a_picture_start_is_five_latents_and_a_text_start_a_block_without_history(model, picture):
    seen = model.start([picture], [None], [5]).worlds
    assert seen.history.frames == 5
    video = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    assert torch.equal(seen.history.latents, model.vae.encode_clip(video.expand(-1, -1, 17, -1, -1)))

    dreamt = model.start(None, ["a quiet beach"], [5]).worlds
    assert dreamt.history.frames == 8
    context, _ = model.conditioning.context([Action()], ["a quiet beach"])
    spoken = "First-person perspective." + Action().caption + " a quiet beach"
    assert torch.equal(context[0], model.conditioning._encoder.encode(spoken, 512))
    still = torch.zeros(1, 8, dtype=torch.float64)
    with torch.inference_mode():
        conditions = model.dit.encode_conditions(None, None, context, Target(still, still, torch.arange(8)[None]))
        sigmas = flow.sigma_schedule(4, 7.0)
        latents = denoise_block(model.dit, conditions, block_noise(model.config, [5], [-1]), sigmas)
    assert torch.equal(dreamt.history.latents, latents)


def test_pictures_of_successive_blocks_have_no_seam(model, picture):
    """Streamed blocks are the decoding of the whole history at once."""
    state, videos = model.start([picture], ["a street"], [1]), []
    for action in (Action(), Action.from_keys("W")):
        state, frames = model.step(state, [action])
        videos.append(frames[0])
    with torch.inference_mode():
        whole, _ = model.vae.decode(state.worlds.history.latents)
    pixels = ((whole[0, :, 20:].permute(1, 2, 3, 0) + 1) * 127.5).round().numpy()
    assert np.abs(np.concatenate(videos) - pixels).max() <= 1


def test_worlds_of_unlike_ages_share_a_batch(model, picture):
    together = model.start([picture, None], [None, "a street"], [1, 2])
    alone = model.start(None, ["a street"], [2])
    together, frames = model.step(together, [Action(), Action.from_keys("S")])
    alone, expected = model.step(alone, [Action.from_keys("S")])
    assert (frames[1] == expected[0]).all()
    assert together.worlds.history.frames == alone.worlds.history.frames == 16


def test_without_a_picture_and_a_text_a_world_is_dreamt(model):
    env = gymnasium.make("YumeWorld-v0", model=model)
    assert env.reset(seed=0)[0].std() > 0


# ---- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 100), (720, 1280), (0, 32)])
def test_a_size_off_the_grid_is_refused(size, original_release):
    with pytest.raises(ValueError, match=r"multiple of 32 x 32 pixels.*nearest that fits"):
        WorldModel.load(original_release, device="cpu", size=size)


def test_a_model_of_one_screen_keeps_its_size():
    with pytest.raises(ValueError, match="dreams at 64 x 96 only"):
        WorldModel.load("street", size=(128, 96))


def first_block(model: WorldModel, picture: np.ndarray) -> torch.Tensor:
    state, _ = model.step(model.start([picture], ["rain"], [4]), [Action.from_keys("W")])
    return state.worlds.history.latents[:, :, -8:]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"dtype": "bfloat16"}, 0.1),
        ({"quantize": "int8"}, 0.1),
        ({"quantize": "fp8"}, 0.3),
        ({"compile": "eager"}, 1e-4),
        ({"offload": "model"}, 0.0),
        ({"offload": "vae"}, 0.0),
        ({"text": "device"}, 0.0),
    ],
    ids=lambda value: "+".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_options_change_precision_and_device_not_the_frames(options, tolerance, original_release, model, picture):
    if "quantize" in options:
        pytest.importorskip("torchao")
    other = WorldModel.load(original_release, **{"device": "cpu", "dtype": "float32", "size": SIZE, **options})
    expected = first_block(model, picture)
    error = float((first_block(other, picture) - expected).square().mean().sqrt() / expected.std())
    assert error <= tolerance
    if tolerance > 1e-3:
        assert error > 0


@torch.inference_mode()
def test_the_autoencoder_works_in_bfloat16(original_release, model, picture):
    options = LoadOptions(device="cpu", dtype="float32", vae_dtype="bfloat16")
    vae = read_vae(open_release(original_release), options).eval()
    assert vae.model.dtype == torch.bfloat16
    video = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    ours, precise = vae.encode_clip(video), model.vae.encode_clip(video)
    assert 0 < float((ours - precise).square().mean().sqrt() / precise.std()) < 0.05
    rough, cache = vae.decode(precise)
    smooth, _ = model.vae.decode(precise)
    assert (rough.dtype, cache[0].dtype) == (torch.float32, torch.bfloat16)
    assert 0 < float((rough - smooth).square().mean().sqrt() / smooth.std()) < 0.05


def test_the_text_encoder_can_be_dropped_between_texts(original_release, picture):
    model = WorldModel.load(original_release, device="cpu", dtype="float32", size=SIZE, text="drop")
    assert not model.config.text.joined
    assert model.conditioning.actions.shape == (81, 64, SHRUNKEN.text.dim)
    assert model.conditioning._encoder._model is None
    model.step(model.start([picture], ["rain"], [4]), [Action.from_keys("W")])
    assert model.conditioning._encoder._model is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, r"unknown quantize 'int3'.*'int8', 'fp8'"),
        ({"offload": "disk"}, "unknown offload"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"text": "drop", "captions": "joined"}, "captions='apart'"),
    ],
)
def test_an_unknown_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoadOptions(**options)


def test_memory_is_what_the_parts_take(original_release, model):
    config = SHRUNKEN.with_history(channel=None).resized(SIZE)
    told = {part: size for part, (_, size) in memory(config, LoadOptions(device="cpu", dtype="float32")).items()}
    assert told["transformer"] == sum(p.nbytes for p in model.dit.parameters())
    assert told["autoencoder"] == sum(p.nbytes for p in model.vae.parameters())
    state = model.start(None, ["x"], [0])
    assert told["stream of one world"] == sum(part.nbytes for part in state.worlds.cache)
    encoder = model.conditioning._encoder._model.parameters()
    unlike = {p.data_ptr(): p.nbytes for p in encoder}  # two names share the embedding
    assert told["text encoder"] == sum(unlike.values())


def test_memory_of_quantized_weights(original_release):
    quantization = pytest.importorskip("torchao.quantization")
    release = open_release(original_release)
    dit = read_dit(release, release.config, LoadOptions(device="cpu", dtype="bfloat16"))
    before, saved = sum(p.nbytes for p in dit.parameters()), 0
    quantization.quantize_(
        dit.blocks, quantization.Int8WeightOnlyConfig(), lambda module, _: type(module) is torch.nn.Linear
    )
    for module in dit.blocks.modules():
        if type(module) is torch.nn.Linear:
            saved += 2 * module.weight.numel() - module.weight.qdata.nbytes - module.weight.scale.nbytes
    told = memory(release.config, LoadOptions(device="cpu", dtype="bfloat16", quantize="int8"))["transformer"][1]
    assert told == before - saved

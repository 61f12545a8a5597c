"""One small world for all tests: the "debug" preset with random weights in which no layer is left at zero."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import with_video
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.model import WorldModel
from world_model.presets import get_preset
from world_model.priors.config import EventsConfig, PlacesConfig, scene_of, with_scene
from world_model.priors.depth import DepthNet
from world_model.text import Conditioning
from world_model.tscm import History
from world_model.vae import PatchVAE, build_vae
from world_model.weights import save_weights

STARTS = 3  # starting pictures of the small world


# files that take a worker longest: they come first, so that no worker is left alone with one at the end
SLOWEST = ("test_smoke_worlds", "test_play_web", "test_sharding", "test_ablate", "test_train_places", "test_full_size")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def _stirred(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with noise on every parameter and buffer, so that no test passes because a branch starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[1:].numel() if parameter.dim() > 3 or parameter.dim() == 2 else 6
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.5 / fan_in**0.5)
        for buffer in module.buffers():
            if buffer.is_floating_point():  # whole numbers are maps of a town, not weights
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=random))
    return module


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return get_preset("debug")


@pytest.fixture(scope="session")
def town_config(config) -> ModelConfig:
    """The same model with the scene field of a town: the street's own, in coarse voxels."""
    places = PlacesConfig(cell=1.0, fine=2, bricks=8192, tables=((2.0, 8, 4), (1.0, 10, 2)), width=16, look=4)
    return with_scene(config, places=places)


@pytest.fixture(scope="session")
def event_config(town_config) -> ModelConfig:
    """The same model with event objects of two kinds and a weather."""
    kinds = (("ufo", 9.0, "open"), ("fire", 12.0, "facade"), ("snow", 0.0, ""))
    return with_scene(town_config, events=EventsConfig(kinds, looks=2, width=8))


@pytest.fixture(scope="session")
def make_dit() -> Callable[[ModelConfig, int], DiT]:
    """make_dit(config, seed): a DiT in which every layer does something."""
    return lambda config, seed=0: _stirred(lambda: DiT(config), seed)


@pytest.fixture(scope="session")
def make_vae(make_videos) -> Callable[[ModelConfig, int], PatchVAE]:
    """make_vae(config, seed): an autoencoder that reconstructs a little and in which every layer does something."""

    def make(config: ModelConfig, seed: int = 0) -> PatchVAE:
        videos = make_videos(config, 8, 4, seed)

        def build() -> nn.Module:
            vae = build_vae(config.vae)
            vae.fit_linear(videos)
            return vae

        vae = _stirred(build, seed)
        vae.normalise(vae.encode_raw(videos))
        return vae

    return make


@pytest.fixture(scope="session")
def make_videos() -> Callable[..., Tensor]:
    """make_videos(config, batch, latents, seed): smooth random videos [B, 3, T, H, W] in -1..1."""

    def make(config: ModelConfig, batch: int, latents: int, seed: int = 0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        coarse = torch.randn(batch, 3, latents, 5, 7, generator=random)
        size = (latents * config.vae.temporal_stride, config.height, config.width)
        return nn.functional.interpolate(coarse, size=size, mode="trilinear").clamp(-1, 1)

    return make


@pytest.fixture(scope="session")
def make_history() -> Callable[..., History]:
    """make_history(config, batch, frames, first, seed): random latents of frames first, first + 1 ... of a turning camera."""

    def make(config: ModelConfig, batch: int, frames: int, first: int = 0, seed: int = 0) -> History:
        random = torch.Generator().manual_seed(seed)
        latents = torch.randn(batch, config.dit.latent_channels, frames, *config.latent_size, generator=random)
        yaw, pitch = (torch.randn(batch, frames, generator=random).double() * spread for spread in (1.0, 0.3))
        frame = torch.arange(first, first + frames).expand(batch, -1)
        return History(latents, frame, yaw, pitch, torch.ones(batch, frames, dtype=torch.bool))

    return make


@pytest.fixture(scope="session")
def make_weights(make_dit, make_vae) -> Callable[[Path, ModelConfig, np.ndarray], Path]:
    """make_weights(folder, config, starts): a whole weights folder as users have it, written by `save_weights`; its starting
    pictures are below each other in starts uint8 [n * H, W, 3]."""

    def make(folder: Path, config: ModelConfig, starts: np.ndarray) -> Path:
        Image.fromarray(starts).save(folder / "starts.png")
        tensors = {
            "dit.safetensors": make_dit(config).state_dict(),
            "vae.safetensors": make_vae(config).state_dict(),
            "text.safetensors": {"actions": Conditioning(config.text).actions},
        }
        save_weights(folder, config, tensors, {"made": "random weights for tests"})
        return folder

    return make


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory, config, make_weights) -> Path:
    """Weights of the small world; with `STARTS` starting pictures."""
    smooth = np.linspace(0, 255, config.width * 3).reshape(1, config.width, 3)
    rows = np.linspace(0.2, 1, STARTS * config.height)[:, None, None]
    return make_weights(tmp_path_factory.mktemp("small_world"), config, (smooth * rows).astype(np.uint8))


@pytest.fixture(scope="session")
def world_model(weights_folder) -> WorldModel:
    return WorldModel.load(weights_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def pictures(config) -> np.ndarray:
    """Four different pictures, uint8 [4, H, W, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (4, config.height // 8, config.width // 8, 3), dtype=np.uint8)
    return noise.repeat(8, axis=1).repeat(8, axis=2)


# ---- released weights, shrunken ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def original_release(tmp_path_factory) -> Path:
    """A folder as the authors published theirs, read only."""
    from shrunken import write_release

    return write_release(tmp_path_factory.mktemp("release") / "original", "original")


@pytest.fixture(scope="session")
def sharded_release(tmp_path_factory) -> Path:
    """The same weights in shards, autoencoder and text encoder as diffusers and transformers have them."""
    from shrunken import write_release

    return write_release(tmp_path_factory.mktemp("release") / "diffusers", "diffusers", shards=3)


# ---- a little of the street to train on ---------------------------------------------------------------------------------

# of the last three walks the first has no event, the second rain from block 7 on, the third a car in blocks 10 to 13
WALKS, WALK_BLOCKS, WALKS_SEED = 7, 16, 4


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory, config, make_vae) -> Path:
    """What `train.vae` and `train.depth` leave in their run folders; every layer of the depth network does something."""
    from train.vae import export

    folder = tmp_path_factory.mktemp("vae")
    export(make_vae(config), config, folder, {"steps": 0})
    net = _stirred(lambda: DepthNet(scene_of(config).depth, config.camera), seed=3)
    save_file(net.state_dict(), folder / "depth.safetensors")
    return folder


@pytest.fixture(scope="session")
def depth_folder(vae_folder) -> Path:
    """What `train.depth` leaves in its run folder; here that is also the autoencoder's."""
    return vae_folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory, config, vae_folder) -> Path:
    """Walks through the street, encoded by the autoencoder in `vae_folder`. Four are held out, three are trained on."""
    from train.data.commands import render
    from train.data.latents import encode
    from train.street.walks import StreetRecipe

    folder = tmp_path_factory.mktemp("data")
    render(config, folder, StreetRecipe.of(config, WALK_BLOCKS, WALKS_SEED), walks=WALKS)
    encode(config, folder, vae_folder, device="cpu")
    return folder


@pytest.fixture(scope="session")
def frozen_vae(config, vae_folder) -> PatchVAE:
    from train.data.latents import load_vae

    return load_vae(config, vae_folder)[0]


@pytest.fixture(scope="session")
def corpus(config, data_folder):
    from train.data.corpus import Corpus

    return Corpus(config, data_folder)


@pytest.fixture(scope="session")
def town_corpus(town_config, data_folder):
    """The same walks for the model of a town."""
    from train.data.corpus import Corpus

    return Corpus(town_config, data_folder)


@pytest.fixture(scope="module")
def few_views() -> Iterator[None]:
    """Fewer starting views and fewer steps for skies: both are trained with every town; test_descriptions.py is about them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("world_model.priors.places.VIEWS", 12)
        patch.setattr("train.street.descriptions.SKY_STEPS", 5)
        yield


# ---- play in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def serve_play():
    """serve_play(model, places, token, **lobby): a context manager that serves a lobby on a free port; gives its address."""
    from yume_gym.play.dreamer import Dreamer
    from yume_gym.play.web import Server, create_app
    from yume_gym.play.web_lobby import Lobby

    @contextmanager
    def serve(model: WorldModel, places: int = 1, token: str | None = None, **options: object) -> Iterator[str]:
        with Dreamer(model, max_sessions=places) as dreamer:
            address: queue.Queue[str] = queue.Queue()
            lobby = Lobby(dreamer, places, **options)
            server = Server(create_app(lobby, token=token), "127.0.0.1", 0, address.put)
            thread = threading.Thread(target=server.run)
            thread.start()
            try:
                yield address.get(timeout=60)
            finally:
                server.should_exit = True
                thread.join()

    return serve


@pytest.fixture(scope="module")
def site(serve_play, world_model) -> Iterator[str]:
    """The address of a lobby for two players."""
    with serve_play(world_model, places=2, held_for=0.2) as address:
        yield address


# ---- worlds to play in --------------------------------------------------------------------------------------------------


@pytest.fixture
def fast_model(world_model) -> WorldModel:
    """The small world at 64 frames a second, for play in real time."""
    config = with_video(world_model.config, fps=64)
    return WorldModel(config, world_model.dit, world_model.vae, world_model.conditioning, world_model.starts)

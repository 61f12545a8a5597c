"""What one picture shows, read from its latents: small networks that rewards are made of (`yume_gym.learned_rewards`).

A folder of weights may hold `NAME.safetensors` and `NAME.json` (a `PictureHeadConfig`, with what was measured on towns that nothing
was trained on). `python -m train.picture_heads` trains them. They belong to one autoencoder: other latents mean something else.

Shapes: B pictures, C latent channels, h x w latent size, D outputs, E numbers of an encoded text.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.text import build_text_encoder, mean_token
from world_model.vae import ResBlock
from world_model.weights import check_file, is_listed, list_files, load_tensors, read_manifest

BEACON, TEXT_GOAL = "beacon", "text_goal"
SEEN, ARRIVED, DISTANCE = range(3)  # outputs of a beacon head: two logits, and the logarithm of 1 + metres
VAE = "vae.safetensors"


@dataclass(frozen=True)
class PictureHeadConfig:
    """Sizes, calibration and what was measured.

    autoencoder: sha256 of the file whose latents it reads. text: E of a head that compares pictures with texts, else 0.
    calibration: (scale, offset) of each logit, so that its sigmoid is a probability. measured: figures by name.
    """

    channels: int
    outputs: int
    autoencoder: str
    text: int = 0
    width: int = 32
    hidden: int = 64
    calibration: tuple[tuple[float, float], ...] = ((1.0, 0.0),)
    threshold: float = 0.5  # probability from which a goal counts as reached
    measured: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> PictureHeadConfig:
        """The inverse of `to_json`. Raises ValueError for unknown or missing fields."""
        try:
            found = cls(**json.loads(text))
            pairs = tuple((float(scale), float(offset)) for scale, offset in found.calibration)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not the config of a picture head: {error}") from error
        return dataclasses.replace(found, calibration=pairs)


class PictureHead(nn.Module):
    """Convolutions over latents with each place's coordinates, pooled by mean and maximum, and an MLP."""

    def __init__(self, config: PictureHeadConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.embed = nn.Conv2d(config.channels + 2, width, 1)
        self.body = nn.Sequential(ResBlock(width), ResBlock(width))
        self.mlp = nn.Sequential(
            nn.Linear(2 * width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.outputs)
        )
        self.text = nn.Linear(config.text, config.outputs, bias=False) if config.text else None

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> outputs [B, D]. Raises ValueError for another number of channels."""
        if latents.dim() != 4 or latents.shape[1] != self.config.channels:
            raise ValueError(
                f"this head reads latents [B, {self.config.channels}, h, w], got a tensor of {tuple(latents.shape)}"
            )
        rows, columns = (torch.linspace(-1, 1, size, device=latents.device) for size in latents.shape[2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(latents), -1, -1, -1)
        hidden = F.relu(self.body(self.embed(torch.cat([latents.float(), places], dim=1))))
        return self.mlp(torch.cat([hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))], dim=1))

    def likeness(self, latents: Tensor, texts: Tensor) -> Tensor:
        """Cosines [B, N] of pictures [B, C, h, w] and encoded texts [N, E]. Raises ValueError for a head without texts."""
        if self.text is None:
            raise ValueError("this head compares no texts: train.picture_heads makes one that does")
        return F.normalize(self(latents), dim=-1) @ F.normalize(self.text(texts), dim=-1).T

    def probability(self, logits: Tensor, number: int = 0) -> Tensor:
        """Calibrated probabilities of logits (or cosines), by the pair `number` of the calibration."""
        scale, offset = self.config.calibration[number]
        return (scale * logits + offset).sigmoid()


def encode_text(config: ModelConfig, text: str) -> Tensor:
    """A text as [E], of length 1: the mean token of the model's frozen encoder. Raises ValueError for a model without text."""
    length = config.text.event_tokens
    return F.normalize(mean_token(build_text_encoder(config.text).encode(text, length)), dim=-1)


def autoencoder_of(folder: Path) -> str:
    """sha256 of the autoencoder of a weights folder, as its manifest has it. Raises ValueError for a folder without one."""
    files = read_manifest(folder)["files"]
    if VAE not in files:
        raise ValueError(f"{folder} lists no {VAE}: picture heads belong to one autoencoder")
    return files[VAE]["sha256"]


def save_picture_head(folder: Path, name: str, head: PictureHead) -> None:
    """Writes the two files (float16) into a weights folder and lists them in its manifest."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in head.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(head.config.to_json() + "\n")
    list_files(folder)


def load_picture_head(folder: Path | None, name: str) -> PictureHead:
    """A head of a weights folder.

    Raises ValueError where there is none, where its files are damaged, or where it was trained on another autoencoder.
    """
    how = "train it with python -m train.picture_heads"
    if folder is None or not all(is_listed(folder, f"{name}.{kind}") for kind in ("json", "safetensors")):
        raise ValueError(f"the weights have no head {name!r}: {how}, or use another reward")
    config = PictureHeadConfig.from_json(check_file(folder, f"{name}.json").read_text())
    if config.autoencoder != autoencoder_of(folder):
        raise ValueError(f"the head {name!r} in {folder} was trained on another autoencoder: {how} again")
    with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
        head = PictureHead(config)
    try:
        head.load_state_dict(load_tensors(folder, f"{name}.safetensors"), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / name}.safetensors does not fit its config: {error}") from error
    return head.eval().requires_grad_(False)

"""The judge: networks that tell from pictures alone how the camera moved and what there is to see.

They learn from YumeStreet only, in towns where no world model is trained (train/judge/data.py). Their layers are in
train/judge/architecture.py. None knows which keys were held.

Legend: B blocks of K pictures and the one before them, N pictures, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.judge.architecture import InverseDynamicsModel, LaterEventClassifier, SceneClassifier
from world_model.actions import LOOKS, MOVES, Action
from world_model.config import ModelConfig

WEIGHTS = Path(__file__).with_name("judge.safetensors")
SEEN = 0.8  # probability from which a thing is seen: rarely imagined, and little is missed
_LUMA = (0.299, 0.587, 0.114)
_MOVE_OF = {direction: int(move) for move, (_, _, direction) in MOVES.items()}
_LOOK_OF = {direction: int(look) for look, (_, _, direction) in LOOKS.items()}


@dataclass(frozen=True)
class Reading:
    """What the judge says of B blocks. All arrays have the block axis first.

    move, look: numbers of `Move` and `Look`. motion [B, 4]: metres forward and to the right, degrees to the right and up.
    light, weather, district: numbers in LIGHTS, WEATHERS, DISTRICTS, and things [B, 11] probabilities, of the last picture.
    features [B, 128]: of the motion, then of the last picture.
    """

    move: np.ndarray
    look: np.ndarray
    motion: np.ndarray
    light: np.ndarray
    weather: np.ndarray
    district: np.ndarray
    things: np.ndarray
    features: np.ndarray

    @property
    def action(self) -> np.ndarray:
        """[B] `Action.index` of the keys that would do what was seen."""
        return len(LOOKS) * self.move + self.look


def join(readings: list[Reading]) -> Reading:
    """One reading of several."""
    return Reading(*(np.concatenate([getattr(r, field.name) for r in readings]) for field in fields(Reading)))


class Judge(nn.Module):
    """Both networks for pictures of one size, rate and block length."""

    def __init__(
        self, height: int, width: int, fps: int, frames_per_block: int, focal: float, units: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.height, self.width, self.fps, self.frames_per_block = height, width, fps, frames_per_block
        self.motion = InverseDynamicsModel(frames_per_block + 1, height, width, focal, (units[2], units[3]))
        self.sight = SceneClassifier()
        self.later = LaterEventClassifier()
        self.units: Tensor
        self.register_buffer("units", torch.tensor(units))

    @classmethod
    def of(cls, config: ModelConfig) -> Judge:
        """An untrained judge for a model's pictures."""
        seconds, camera = config.frames_per_block / config.fps, config.camera
        units = tuple(
            seconds * speed for speed in (camera.walk_speed, camera.walk_speed, camera.turn_speed, camera.tilt_speed)
        )
        focal = camera.focal(config.width)
        return cls(config.height, config.width, config.fps, config.frames_per_block, focal, units)

    @classmethod
    def load(cls, config: ModelConfig, weights: Path = WEIGHTS) -> Judge:
        """The trained judge, checked to be one for `config`'s pictures.

        Raises FileNotFoundError without weights, ValueError where it was trained for other pictures.
        """
        judge = cls.of(config)
        judge.load_state_dict(load_weights(config, weights))
        return judge.eval().requires_grad_(False)

    def save(self, weights: Path, metadata: dict) -> None:
        """float16 weights and, beside them, a JSON of metadata."""
        tensors = {
            k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in self.state_dict().items()
        }
        save_file(tensors, weights)
        pictures = {name: getattr(self, name) for name in ("height", "width", "fps", "frames_per_block")}
        weights.with_suffix(".json").write_text(json.dumps({"pictures": pictures, **metadata}, indent=1) + "\n")

    @torch.inference_mode()
    def read(self, frames: np.ndarray, batch: int = 64) -> Reading:
        """Reads blocks uint8 [B, K + 1, H, W, 3], each with the picture before it. Raises ValueError for other shapes."""
        expected = (self.frames_per_block + 1, self.height, self.width, 3)
        if frames.ndim != 5 or frames.shape[1:] != expected or frames.dtype != np.uint8:
            raise ValueError(
                f"blocks must be uint8 of shape (B, {', '.join(map(str, expected))}), got {frames.dtype} {frames.shape}"
            )
        return join([self._read(to_float(frames[first : first + batch])) for first in range(0, len(frames), batch)])

    def _read(self, pictures: Tensor) -> Reading:
        move, look, motion, moved = self.motion(to_grey(pictures))
        light, weather, district, first, seen, edges = self.sight(pictures[:, -1])
        things = torch.cat([first, self.later(edges)], dim=1)
        return Reading(
            move=move.argmax(dim=1).numpy(),
            look=look.argmax(dim=1).numpy(),
            motion=(motion * self.units).numpy(),
            light=light.argmax(dim=1).numpy(),
            weather=weather.argmax(dim=1).numpy(),
            district=district.argmax(dim=1).numpy(),
            things=things.sigmoid().numpy(),
            features=torch.cat([moved, seen], dim=1).numpy(),
        )

    def look_at(self, pictures: np.ndarray) -> Reading:
        """Reads single pictures uint8 [N, H, W, 3]: only what a still picture tells is meaningful."""
        return self.read(np.repeat(pictures[:, None], self.frames_per_block + 1, axis=1))

    @torch.inference_mode()
    def distance(self, pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
        """[N] perceptual distance of pictures uint8 [N, H, W, 3], made like LPIPS (Zhang et al. 2018, arXiv:1801.03924).

        Squared difference of the channel-normalised maps of all stages of the sight network, mean over places, summed over
        stages; there is no calibration to people. 0: equal; its scale means nothing by itself.
        """
        a, b = (self.sight.maps(to_float(p)) for p in (pictures, others))
        parts = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2)) for x, y in zip(a, b)
        ]
        return torch.stack(parts).sum(dim=0).numpy()


def load_weights(config: ModelConfig, weights: Path) -> dict[str, Tensor]:
    """The tensors of a judge's file, in float32; errors as those of `Judge.load`."""
    if not weights.exists():
        raise FileNotFoundError(f"no judge at {weights}: train one (python -m train.judge train --help)")
    trained = judge_metadata(weights)["pictures"]
    needed = {name: getattr(config, name) for name in ("height", "width", "fps", "frames_per_block")}
    if trained != needed:
        raise ValueError(
            f"the judge {weights} reads {trained}, the model dreams {needed}: train one for it (train.judge)"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}


def to_float(pictures: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3).float() / 255


def to_grey(pictures: Tensor) -> Tensor:
    """[..., 3, H, W] -> [..., H, W]."""
    return torch.einsum("...chw,c->...hw", pictures, pictures.new_tensor(_LUMA))


def classes_of(motion: np.ndarray, units: tuple[float, ...] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(move [B], look [B]) that fit motions [B, 4] best: each axis counts from a third of what its key does in a block."""
    signs = np.sign(motion / np.asarray(units)) * (abs(motion / np.asarray(units)) > 1 / 3)
    move = [_MOVE_OF[int(forward), int(right)] for forward, right in signs[:, :2]]
    look = [_LOOK_OF[int(right), int(up)] for right, up in signs[:, 2:]]
    return np.array(move), np.array(look)


def axes_of(indices: np.ndarray) -> np.ndarray:
    """[B, 4] of -1, 0, 1 (forward, right, turn right, tilt up) for actions by index [B]."""
    table = np.array([(*Action.from_index(i).walk, *Action.from_index(i).turn) for i in range(len(MOVES) * len(LOOKS))])
    return table[np.asarray(indices, int)]


def judge_metadata(weights: Path = WEIGHTS) -> dict:
    """The JSON beside a judge's weights: its pictures, training and accuracy."""
    return json.loads(weights.with_suffix(".json").read_text())


def fingerprint(weights: Path = WEIGHTS) -> str:
    """sha256 of a judge's weights."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()

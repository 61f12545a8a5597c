"""The judge: two small networks that tell from pictures alone how the camera moved and what there is to see.

Both learn from YumeStreet only, in towns where no world model is trained (train/judge/data.py). `InverseDynamicsModel`
reads the grey pictures of one block and the one before it. `SceneClassifier` reads one picture.
Neither knows which keys were held. Things of events that came later are read by stages of their own (`LaterEventClassifier`) that
begin where the first of `SceneClassifier` end, so that all else is read as it was.

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

from train.judge.data import THINGS
from train.street.walks import LATER_EVENTS
from world_model.actions import LOOKS, MOVES, Action
from world_model.config import ModelConfig
from yume_gym.street.layout import DISTRICTS
from yume_gym.street.simulator import LIGHTS, WEATHERS

WEIGHTS = Path(__file__).with_name("judge.safetensors")
FIRST_THINGS = len(THINGS) - len(LATER_EVENTS)  # of THINGS, that `SceneClassifier` itself tells
FEATURES = 64  # of each network
STEP_FEATURES = 40  # of those of motion
EARLY, EDGES = 3, 48  # stages of sight that later things are told from, and their features
LATER_WIDTH = 64
SEEN = 0.8  # probability from which a thing is seen: rarely imagined, and little is missed
_TURNS = tuple(direction for _, _, direction in LOOKS.values())
_LUMA = (0.299, 0.587, 0.114)
_MOVE_OF = {direction: int(move) for move, (_, _, direction) in MOVES.items()}
_LOOK_OF = {direction: int(look) for look, (_, _, direction) in LOOKS.items()}


def _stage(inside: int, outside: int, kernel: int = 3, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class InverseDynamicsModel(nn.Module):
    """Grey pictures [B, K + 1, H, W] in 0..1 -> move [B, 9], look [B, 9] (logits), motion [B, 4], features [B, 64].

    Motion is in shares of what a held key does in a block: forward, to the right, turn right, tilt up. Turning moves a picture
    far more than a step does, so it is judged first, on small pictures; then the pictures are turned back by as much, and what
    is left tells of the steps.
    """

    def __init__(self, pictures: int, height: int, width: int, focal: float, turns: tuple[float, float]) -> None:
        """`focal` in pixels; `turns`: degrees to the right and up that a held key makes in a block."""
        super().__init__()
        self.focal, self.turns = focal, turns
        rows, columns = -(-height // 16), -(-width // 16)
        self.turning = nn.Sequential(
            nn.AvgPool2d(2), _stage(pictures, 16, 5), _stage(16, 32), _stage(32, 48), nn.Flatten(),
            nn.Linear(48 * rows * columns, FEATURES - STEP_FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.stepping = nn.Sequential(
            _stage(pictures, 16, 5), _stage(16, 32), _stage(32, 32, stride=1), _stage(32, 64), _stage(64, 64, stride=1),
            _stage(64, 96), _stage(96, 32, 1, 1), nn.Flatten(), nn.Linear(32 * rows * columns, STEP_FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.look, self.rotation = (nn.Linear(FEATURES - STEP_FEATURES, count) for count in (len(LOOKS), 2))
        self.move, self.translation = (nn.Linear(STEP_FEATURES, count) for count in (len(MOVES), 2))

    def forward(self, grey: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`rotation` [B, 2], where known (NaN elsewhere), is what pictures are turned back by instead of the look judged.

        That is a whole key's turn or none: the regressed turn is a few degrees off, which moves most of a picture more than a
        step does.
        """
        # light and weather change the mean and the contrast of a picture, not how it moves
        grey = grey - grey.mean(dim=(1, 2, 3), keepdim=True)
        grey = grey / (grey.std(dim=(1, 2, 3), keepdim=True) + 0.02)
        turned = self.turning(grey)
        look = self.look(turned)
        judged = look.new_tensor(_TURNS)[look.argmax(dim=1)]
        stepped = self.stepping(
            self.turn_back(grey, judged if rotation is None else rotation.where(~rotation.isnan(), judged))
        )
        motion = torch.cat([self.translation(stepped), self.rotation(turned)], dim=1)
        return self.move(stepped), look, motion, torch.cat([stepped, turned], dim=1)

    def turn_back(self, grey: Tensor, rotation: Tensor) -> Tensor:
        """All pictures as seen in the direction of the middle one, if the camera turned evenly by `rotation` [B, 2]; 0 outside."""
        batch, count, height, width = grey.shape
        share = torch.linspace(-0.5, 0.5, count, device=grey.device)
        yaw, pitch = (
            (rotation * rotation.new_tensor(self.turns)).deg2rad()[:, :, None].mul(share).unbind(dim=1)
        )  # [B, K + 1]
        x = (torch.arange(width, device=grey.device) + 0.5 - width / 2) / self.focal
        y = (torch.arange(height, device=grey.device)[:, None] + 0.5 - height / 2) / self.focal
        yaw, pitch = yaw[..., None, None], pitch[..., None, None]
        across, ahead = x * yaw.cos() - yaw.sin(), x * yaw.sin() + yaw.cos()
        down, ahead = y * pitch.cos() + ahead * pitch.sin(), ahead * pitch.cos() - y * pitch.sin()
        scale = 2 * self.focal
        places = torch.stack([(across / ahead * scale / width).expand_as(ahead), down / ahead * scale / height], dim=-1)
        seen = F.grid_sample(grey.flatten(0, 1)[:, None], places.flatten(0, 1), align_corners=False)
        return seen.view(batch, count, height, width)


class _Residual(nn.Module):
    """A stage of equal width whose input is added to its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage = _stage(width, width, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stage(x)


class SceneClassifier(nn.Module):
    """Pictures [N, 3, H, W] in 0..1 -> logits of light [N, 4], weather [N, 4], district [N, 5] and the first things [N, 7],
    features [N, 64], and the map [N, 48, h, w] of the first `EARLY` stages.

    Light, weather and district are of the whole picture. Things are small: each place of a map an eighth as fine as the picture
    says what it sees, and a picture shows what any place sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                _stage(3, 24, 5),
                _stage(24, 48),
                _Residual(48),
                _stage(48, 96),
                _Residual(96),
                _Residual(96),
                _stage(96, 128),
            ]
        )
        self.features = nn.Linear(2 * 128, FEATURES)
        self.light, self.weather = nn.Linear(FEATURES, len(LIGHTS)), nn.Linear(FEATURES, len(WEATHERS))
        self.district = nn.Linear(FEATURES, len(DISTRICTS))
        self.things = nn.Conv2d(96, FIRST_THINGS, 1)
        assert self.things.bias is not None
        nn.init.constant_(self.things.bias, -6.0)

    def maps(self, picture: Tensor, count: int | None = None) -> list[Tensor]:
        """The outputs of all stages, or of the first `count`, finest first."""
        maps = []
        x = picture - 0.5
        for stage in self.stages[:count]:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        maps = self.maps(picture)
        fine, last = maps[-2:]
        pooled = torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1)
        features = F.relu(self.features(pooled))
        things = self.things(fine).flatten(2).logsumexp(dim=2)
        return self.light(features), self.weather(features), self.district(features), things, features, maps[EARLY - 1]


class LaterEventClassifier(nn.Module):
    """The map [N, 48, h, w] of a picture's edges and colours -> logits [N, 4] of the last things.

    Stages of their own lead there: what `SceneClassifier` makes of a picture further on was not learnt for these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(_stage(EDGES, LATER_WIDTH), _Residual(LATER_WIDTH), nn.Dropout2d(0.1))
        self.things = nn.Conv2d(LATER_WIDTH, len(LATER_EVENTS), 1)
        assert self.things.bias is not None
        nn.init.constant_(self.things.bias, -6.0)

    def forward(self, edges: Tensor) -> Tensor:
        return self.things(self.stages(edges)).flatten(2).logsumexp(dim=2)


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

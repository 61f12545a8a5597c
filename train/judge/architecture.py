"""The judge's networks: `InverseDynamicsModel` reads grey pictures of one block and the one before, `SceneClassifier` one picture.

Things of events that came later are read by stages of their own (`LaterEventClassifier`) that begin where the first of
`SceneClassifier` end, so that all else is read as it was.

Legend: B blocks of K pictures and the one before them, N pictures, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.judge.data import THINGS
from train.street.walks import LATER_EVENTS
from world_model.actions import LOOKS, MOVES
from yume_gym.street.layout import DISTRICTS
from yume_gym.street.simulator import LIGHTS, WEATHERS

FIRST_THINGS = len(THINGS) - len(LATER_EVENTS)  # of THINGS, that `SceneClassifier` itself tells
FEATURES = 64  # of each network
STEP_FEATURES = 40  # of those of motion
EARLY, EDGES = 3, 48  # stages of sight that later things are told from, and their features
LATER_WIDTH = 64
_TURNS = tuple(direction for _, _, direction in LOOKS.values())


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
            nn.AvgPool2d(2),
            _stage(pictures, 16, 5),
            _stage(16, 32),
            _stage(32, 48),
            nn.Flatten(),
            nn.Linear(48 * rows * columns, FEATURES - STEP_FEATURES),
            nn.ReLU(),
        )
        self.stepping = nn.Sequential(
            _stage(pictures, 16, 5),
            _stage(16, 32),
            _stage(32, 32, stride=1),
            _stage(32, 64),
            _stage(64, 64, stride=1),
            _stage(64, 96),
            _stage(96, 32, 1, 1),
            nn.Flatten(),
            nn.Linear(32 * rows * columns, STEP_FEATURES),
            nn.ReLU(),
        )
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

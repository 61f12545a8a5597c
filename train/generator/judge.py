"""The judge of a recorded world: an inverse-dynamics model, which tells from pictures alone what action was taken.

It learns from recorded training episodes only, and never sees a generated picture. Its features serve for distances of pictures.

Legend: B steps of T pictures each and the one before them, N pictures, H x W pixels, n components of an action: one of a discrete
space, (move, look) of the first-person one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.generator.fit import Budget, Stage
from train.generator.measures import accuracy, r_squared
from train.recordings import EpisodeFiles, Recording
from world_model.action_spaces import ActionSpec
from world_model.actions import LOOKS, MOVES

NAME = "judge.safetensors"
FEATURES = 64
BATCH = 64  # steps read at once
TRUNK = 2  # stages that see single pictures


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    minutes: float = 5.0
    steps: int = 1_000_000_000  # at most
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.03  # largest deviation of pixel noise, of 0..1: a decoder's small errors should not matter
    tested: int = 2000  # held-out steps that its accuracy is told of
    seed: int = 0


# ---- actions ----------------------------------------------------------------------------------------------------------


def component_sizes(spec: ActionSpec) -> tuple[int, ...]:
    """Choices of each component; () for a box."""
    return (len(MOVES), len(LOOKS)) if spec.kind == "first_person" else spec.sizes


def component_names(spec: ActionSpec) -> list[str]:
    """A name for each component."""
    if spec.kind in ("first_person", "discrete"):
        return ["move", "look"] if spec.kind == "first_person" else ["action"]
    return [f"component {i}" for i in range(spec.shape[0])]


def components(spec: ActionSpec, actions: np.ndarray) -> np.ndarray:
    """[N, *shape] -> [N, n]: the number of each component's choice, or a box scaled to -1..1."""
    if spec.kind == "box":
        return spec.encode(actions)
    if spec.kind == "first_person":
        return np.stack([actions // len(LOOKS), actions % len(LOOKS)], axis=1)
    return np.asarray(actions, np.int64).reshape(len(actions), -1)


# ---- network ----------------------------------------------------------------------------------------------------------


def _stage(inside: int, outside: int, kernel: int = 3, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class Judge(nn.Module):
    """Pictures [B, T + 1, 3, H, W] in 0..1 -> logits of all components one after another, or values of a box, and features [B, 64].

    The first stages see each picture alone, the others all of a step.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.spec, self.pictures = recording.action, recording.frames_per_step + 1
        self.height, self.width = recording.height, recording.width
        rows, columns = -(-self.height // 8), -(-self.width // 8)
        self.trunk = nn.ModuleList([_stage(3, 12, 5), _stage(12, 16, stride=1)])
        self.joint = nn.ModuleList([_stage(16 * self.pictures, 32), _stage(32, 64), _stage(64, 64, stride=1)])
        self.features = nn.Sequential(
            nn.Conv2d(64, 24, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * rows * columns, FEATURES), nn.ReLU()
        )
        sizes = component_sizes(self.spec)
        self.head = nn.Linear(FEATURES, sum(sizes) if sizes else len(self.spec.low))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The outputs of all stages; those of single pictures are [B * (T + 1), channels, h, w]."""
        x, maps = pictures.flatten(0, 1) - 0.5, []
        for stage in self.trunk:
            maps.append(x := stage(x))
        x = x.unflatten(0, pictures.shape[:2]).flatten(1, 2)
        for stage in self.joint:
            maps.append(x := stage(x))
        return maps

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.maps(pictures)[-1])
        return self.head(features), features

    def loss(self, pictures: Tensor, wanted: Tensor) -> Tensor:
        """Sum over components [B, n] of the cross entropy; of a box the squared error."""
        output, _ = self(pictures)
        sizes = component_sizes(self.spec)
        if not sizes:
            return F.mse_loss(output, wanted)
        return sum(F.cross_entropy(part, wanted[:, k]) for k, part in enumerate(output.split(sizes, dim=1)))  # type: ignore[return-value]

    @torch.inference_mode()
    def read(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What was done in steps uint8 [B, T + 1, H, W, 3], each with the picture before it: components [B, n] as `components`
        gives them, and features [B, 64]. Raises ValueError for other shapes."""
        expected = (self.pictures, self.height, self.width, 3)
        if steps.ndim != 5 or steps.shape[1:] != expected or steps.dtype != np.uint8:
            wanted = f"uint8 [B, {', '.join(map(str, expected))}]"
            raise ValueError(f"the judge reads steps {wanted}, got {steps.dtype} {list(steps.shape)}")
        said, features = [], []
        for first in range(0, len(steps), BATCH):
            output, feature = self(self._to_float(steps[first : first + BATCH]))
            sizes = component_sizes(self.spec)
            if sizes:
                output = torch.stack([part.argmax(dim=1) for part in output.split(sizes, dim=1)], dim=1)
            said.append(output.cpu().numpy())
            features.append(feature.float().cpu().numpy())
        return np.concatenate(said), np.concatenate(features)

    @torch.inference_mode()
    def distance(self, pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
        """[N] perceptual distance of pictures uint8 [N, H, W, 3].

        Made like LPIPS (Zhang et al. 2018, arXiv:1801.03924), but it is not LPIPS. Squared difference of the channel-normalised
        maps of all stages, each picture standing still; mean over places, summed over stages. Nothing was calibrated to people.
        0: equal; its scale means nothing by itself.
        """
        found = []
        for first in range(0, len(pictures), BATCH):
            pair = (self._still(p[first : first + BATCH]) for p in (pictures, others))
            parts = [
                (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
                for x, y in zip(*(self._maps_of_still(p) for p in pair))
            ]
            found.append(torch.stack(parts).sum(dim=0).float().cpu().numpy())
        return np.concatenate(found)

    def _to_float(self, pictures: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.head.weight.device)
        return tensor.movedim(-1, -3).float() / 255

    def _still(self, pictures: np.ndarray) -> Tensor:
        return self._to_float(pictures)[:, None].expand(-1, self.pictures, -1, -1, -1)

    def _maps_of_still(self, still: Tensor) -> list[Tensor]:
        maps = self.maps(still)
        return [m[:: self.pictures] for m in maps[:TRUNK]] + maps[TRUNK:]


# ---- training ---------------------------------------------------------------------------------------------------------


class Steps:
    """All steps of some episodes, drawn by number."""

    def __init__(self, files: EpisodeFiles, episodes: Sequence[int]) -> None:
        self._files, self._size = files, files.recording.frames_per_step
        self.episode = np.repeat(np.asarray(episodes, np.int64), files.lengths[list(episodes)])
        self.step = np.concatenate([np.arange(files.lengths[e]) for e in episodes])

    def __len__(self) -> int:
        return len(self.step)

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [B, T + 1, H, W, 3] and actions [B, *shape] of steps by number [B]."""
        size, files = self._size, self._files
        places = [(int(self.episode[i]), int(self.step[i])) for i in numbers]
        pictures = np.stack([files.frames(e, s * size, (s + 1) * size + 1) for e, s in places])
        return pictures, files.action[[files.starts[e] + s for e, s in places]]


def train_judge(
    folder: Path,
    files: EpisodeFiles,
    train: Sequence[int],
    held_out: Sequence[int],
    settings: Settings,
    device: torch.device | str = "cpu",
) -> Judge:
    """The judge of a recording, kept in `folder`: trained until `settings.minutes` are spent, unless it was before.

    Raises ValueError where `folder` holds a judge of other pictures or actions.
    """
    path, recording = folder / NAME, files.recording
    if path.is_file() and judge_metadata(path)["minutes"] >= settings.minutes:
        return load_judge(path, recording).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        judge = Judge(recording).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps, spec = Steps(files, train), recording.action
    budget = Budget(settings.minutes, settings.steps, warmup=20)
    stage = Stage("judge", folder / "stages" / "judge", budget, {"judge": judge}, {"judge": [optimizer]}, {})

    def step(number: int, done: float) -> dict[str, Tensor]:
        rng = np.random.default_rng((settings.seed, number))
        pictures, actions = steps.take(rng.integers(len(steps), size=settings.batch))
        x = judge._to_float(pictures)
        stream = torch.Generator(x.device).manual_seed(settings.seed * 1_000_003 + number)
        deviation = settings.noise * torch.rand(len(x), 1, 1, 1, 1, generator=stream, device=x.device)
        x = x + deviation * torch.randn(x.shape, generator=stream, device=x.device)
        loss = judge.loss(x, torch.from_numpy(components(spec, actions)).to(x.device))
        stage.update("judge", loss)
        return {"loss": loss}

    stage.run(step)
    judge.eval().requires_grad_(False)
    metadata = {"minutes": settings.minutes, "steps": stage.step, "trained on steps": len(steps)}
    save_judge(judge, path, {**metadata, **_tested(judge, Steps(files, held_out), settings)})
    return judge


def _tested(judge: Judge, steps: Steps, settings: Settings) -> dict[str, Any]:
    """How right it is on held-out steps; a box: its R^2 (train.generator.measures)."""
    rng = np.random.default_rng((settings.seed, 1))
    pictures, actions = steps.take(rng.permutation(len(steps))[: settings.tested])
    said, held = judge.read(pictures)[0], components(judge.spec, actions)
    score = accuracy if component_sizes(judge.spec) else r_squared
    each = {name: score(held[:, k], said[:, k]) for k, name in enumerate(component_names(judge.spec))}
    return {"held-out steps": len(said), "held-out": each}


def save_judge(judge: Judge, path: Path, metadata: dict[str, Any]) -> None:
    """float32 weights and, beside them, a JSON of metadata."""
    save_file({name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(metadata, indent=1) + "\n")


def load_judge(path: Path, recording: Recording) -> Judge:
    """The judge that was saved at `path`. Raises ValueError where it is one of other pictures or actions."""
    judge = Judge(recording)
    try:
        judge.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path} is a judge of other pictures or actions: delete it and stages/judge beside it ({error})"
        ) from error
    return judge.eval().requires_grad_(False)


def judge_metadata(path: Path) -> dict[str, Any]:
    """The JSON beside a judge's weights: its training and accuracy."""
    return json.loads(path.with_suffix(".json").read_text())


def fingerprint(path: Path) -> str:
    """sha256 of a judge's weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Trains the guide's depth network on the town's true distances: `python -m train.depth street --out RUN [--minutes 10]`.

Views are rendered as they are needed: the model's own town and others, in every light and weather, some with an event, from where
walkers get to. Pictures are blurred and noised now and then, as dreams are. Resumable. Writes `depth.safetensors` (the EMA) and
`depth.json` (config, steps, errors on views not trained on).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from train.engine.arguments import read_arguments
from train.engine.checkpoints import load_network
from train.engine.loop import Networks, Run, prepare_cpu
from train.evaluation.sheet import to_pictures, to_video
from train.street.walks import plan_walk
from world_model.actions import ALL_ACTIONS
from world_model.config import ModelConfig
from world_model.priors.config import scene_of
from world_model.priors.depth import FARTHEST, NEAREST, DepthNet
from world_model.rollout import generator
from yume_gym.street.simulator import StreetSimulator

TOWNS = (0, 0, 1, 2)  # the model's own town as often as two others together
HELD_OUT_VIEWS = 32
WEIGHTS = "depth.safetensors"


@dataclass(frozen=True)
class Settings:
    """Numbers of this stage."""

    batch: int = 12
    moves: int = 1  # views of a scene, a random step of a second apart
    lr: float = 1e-3
    blurred: float = 0.3  # share of pictures
    ema: float = 0.995
    town_blocks: int = 2
    seed: int = 0


class Views:
    """Pictures with distances, drawn by key."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        self.settings = settings
        size = {"height": config.height, "width": config.width, "fps": 1, "frames_per_block": 1}
        self.streets = {
            town: StreetSimulator(**size, camera=config.camera, town_seed=town, blocks=settings.town_blocks)
            for town in set(TOWNS)
        }

    def draw(self, count: int, *key: int | str) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [count, 3, H, W] in -1..1, pitch [count] float64, inverse distance [count, H, W]."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator(*key))))
        pictures: list[np.ndarray] = []
        pitches: list[float] = []
        inverse: list[np.ndarray] = []
        while len(pictures) < count:
            street = self.streets[TOWNS[int(rng.integers(len(TOWNS)))]]
            plan = plan_walk(rng, 32)
            yaw = float(rng.uniform(-math.pi, math.pi)) if rng.random() < 0.5 else None
            street.reset(rng, light=plan.light, weather=plan.weather, yaw=yaw, pitch=float(rng.uniform(-0.35, 0.35)))
            if plan.events:
                street.set_event(plan.events[0][0])
            for _ in range(min(self.settings.moves, count - len(pictures))):
                block = street.step(ALL_ACTIONS[int(rng.integers(len(ALL_ACTIONS)))])
                pictures.append(block.frames[0])
                pitches.append(street.pitch)
                inverse.append(1 / np.clip(street.depth(), NEAREST, FARTHEST))
        video = to_video(np.stack(pictures)[:, None])[:, :, 0]
        return video, torch.tensor(pitches, dtype=torch.float64), torch.from_numpy(np.stack(inverse)).float()


def degrade(pictures: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Blurs and noises a share of the pictures, by a different amount each."""
    amount = torch.rand(len(pictures), 1, 1, 1, generator=stream)
    amount = amount * (torch.rand(len(pictures), 1, 1, 1, generator=stream) < share)
    blurred = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, 1)
    noise = 0.1 * torch.randn(pictures.shape, generator=stream)
    return torch.lerp(pictures, blurred + noise, amount).clamp(-1, 1)


def load_depth(net: DepthNet, folder: Path | None) -> None:
    """Puts the weights of a run of this stage into `net`. Raises FileNotFoundError without them, ValueError for unfitting ones."""
    missing = "a model with a guide needs --depth, a run of train.depth"
    load_network(net, folder, WEIGHTS, missing, "the depth network")


def depth_loss(found: Tensor, truth: Tensor) -> Tensor:
    """What warping feels: error of inverse distance (a pixel's shift a metre, over the focal length), and of its logarithm within
    about 50 m."""
    far = 1 / 50
    return 4 * (found - truth).abs().mean() + 0.25 * ((found + far).log() - (truth + far).log()).abs().mean()


def errors(net: DepthNet, views: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """On given views: mean error of inverse distance, pixels' mean shift error for a metre sideways, log error within 40 m."""
    pictures, pitch, truth = views
    with torch.no_grad():
        found = net(pictures, pitch)
    near = truth > 1 / 40
    focal = net.camera.focal(pictures.shape[-1])
    shift = (found - truth).abs().mean()
    return {
        "inverse": float(shift),
        "pixels_a_metre": float(shift * focal),
        "log_within_40m": float((found.log() - truth.log()).abs()[near].mean()),
    }


def train(config: ModelConfig, out: Path, settings: Settings, steps: int, minutes: float | None) -> None:
    """Trains until `steps` or `minutes`, evaluates and writes the weights."""
    torch.manual_seed(settings.seed)
    views = Views(config, settings)
    held_out = views.draw(HELD_OUT_VIEWS, settings.seed, "held out")
    scene = scene_of(config)
    if scene is None:
        raise ValueError(f"{config.name} has no scene prior, whose depths these are")
    net = DepthNet(scene.depth, config.camera)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    run = Run("depth", config, settings, out, Networks({"depth": net}, [optimizer], {"depth": settings.ema}))
    average = run.averaged("depth", DepthNet)
    losses: list[float] = []
    for step in run.steps(steps, minutes):
        pictures, pitch, truth = views.draw(settings.batch, settings.seed, "views", step)
        pictures = degrade(pictures, settings.blurred, generator(settings.seed, "blur", step))
        loss = depth_loss(net(pictures, pitch), truth)
        optimizer.zero_grad()
        run.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * run.rate(steps, minutes, 50, 0.4, 0.05)
        optimizer.step()
        run.average("depth")
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            run.log({"loss": float(np.mean(losses[-100:])), **errors(average, held_out)})
            run.sheet("depth", _pairs(average, held_out))
            run.save()
    run.finish()
    save_file({k: v.contiguous() for k, v in average.state_dict().items()}, out / WEIGHTS)
    metadata = {"steps": run.progress.step, **{k: round(v, 4) for k, v in errors(average, held_out).items()}}
    (out / "depth.json").write_text(json.dumps({**json.loads(config.to_json()), "depth_training": metadata}, indent=1))


@torch.no_grad()
def _pairs(net: DepthNet, views: tuple[Tensor, Tensor, Tensor]) -> list[list[np.ndarray]]:
    """Rows of a contact sheet: pictures, true and found inverse distances (white: 2 m or nearer)."""
    pictures, pitch, truth = (part[:8] for part in views)

    def grey(inverse: Tensor) -> list[np.ndarray]:
        return list(((2 * inverse).clamp(0, 1).sqrt() * 255).byte()[..., None].expand(-1, -1, -1, 3).numpy())

    return [list(to_pictures(pictures[:, :, None])[:, 0]), grey(truth), grey(net(pictures, pitch))]


def main() -> None:
    prepare_cpu()
    config, settings, a = read_arguments(__doc__, Settings, ("batch", "lr"))
    train(config, a.out, settings, a.steps, a.minutes)


if __name__ == "__main__":
    main()

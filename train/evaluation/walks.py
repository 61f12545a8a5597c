"""Walks: a world is walked along a route, and every block of it is measured as it goes by.

Control, endurance and fidelity are all read from these records. B blocks; NaN where something was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from train.evaluation.worlds import Scene, World
from train.generator.measures import PEAK, psnr, sharpness
from train.judge.motion import LUMA, block_motion
from train.judge.network import Judge, join
from train.street.routes import Route, balanced_route, open_start
from train.street.walks import ATMOSPHERES
from yume_gym.street.simulator import StreetSimulator

_JUDGE_EVERY = 32  # blocks read at once
_SSIM_WINDOW = 1.5  # pixels, deviation


@dataclass(frozen=True)
class Plan:
    """How many walks are measured, how long they are and how closely they are looked at."""

    count: int = 8  # of each world, along the same routes
    horizon: float = 600.0  # seconds that the dream and the street are walked
    side_horizon: float = 60.0  # the same for the street through the autoencoder, the frozen picture, other towns
    real: int = 32  # walks of 10 s that distances are taken to
    natural: int = 16  # walks of 10 s as in training, for the autoencoder
    far: int = 4  # in each town that neither the world model nor the judge was trained on
    flow_every: int = 4  # blocks; optical flow is slow
    film: float = 20.0  # seconds of the first walk


@dataclass(frozen=True)
class Trial:
    """Where a walk begins and which keys are held."""

    scene: Scene
    route: Route


def draw_sky(rng: np.random.Generator) -> tuple[str, str]:
    """(light, weather) as often as in training."""
    return ATMOSPHERES[int(rng.choice(len(ATMOSPHERES), p=[share for *_, share in ATMOSPHERES]))][:2]


def make_trial(
    street: StreetSimulator, seed: int, number: int, blocks: int, sky: tuple[str, str] | None = None
) -> Trial:
    """Walk `number` of `seed`: a balanced route from an open view under `sky` (light, weather), or one drawn as in training."""
    rng = np.random.default_rng([seed, number])
    drawn = draw_sky(rng)
    picture = open_start(street, rng, *(sky or drawn))
    return Trial(Scene(street.get_state(), picture, seed * 1000 + number), balanced_route(street, rng, blocks))


def measure_walk(
    world: World, street: StreetSimulator, judge: Judge, trial: Trial, *, flow_every: int = 1, kept: tuple[int, ...] = (),
    film: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What a world shows along a route; arrays with the block axis first.

    action, switch: what was held. said [B] `Action.index` and motion [B, 4]: what the judge saw. turn, tilt, zoom: what optical
    flow saw, on every `flow_every`-th block. things [B, 7], light, weather, features [B, 128]: the judge's. sharpness, colour
    [B, 6] (means and deviations of red, green, blue), change (mean difference of successive pictures): in grey levels.
    psnr, ssim, distance: to the street on the same route. pictures [len(kept), 2, H, W, 3]: the last of those blocks, truth
    and world; film [2, T, H, W, 3]: all of the first `film` blocks.
    """
    focal = street.camera.focal(street.width)
    state, last = world.start(trial.scene), trial.scene.picture
    waiting, readings, rows, pictures, films = [], [], [], [], []
    for block, action in enumerate(trial.route.actions):
        state, frames = world.step(state, action)
        street.set_state(trial.route.states[block])
        truth = street.step(action).frames
        both = np.concatenate([last[None], frames])
        last = frames[-1]
        motion = block_motion(both, focal) if block % flow_every == 0 else None
        rows.append(
            (
                *((motion.turn, motion.tilt, motion.zoom) if motion else (np.nan,) * 3),
                sharpness(last),
                abs(np.diff(both.astype(float) @ LUMA, axis=0)).mean(),
                psnr(frames, truth),
                ssim(last, truth[-1]),
                judge.distance(last[None], truth[-1:])[0],
                *last.mean(axis=(0, 1)),
                *last.std(axis=(0, 1)),
            )
        )
        waiting.append(both)
        if len(waiting) == _JUDGE_EVERY or block + 1 == len(trial.route):
            readings.append(judge.read(np.stack(waiting)))
            waiting = []
        if block in kept:
            pictures.append((truth[-1], last))
        if block < film:
            films.append((truth, frames))
    seen, numbers = join(readings), np.array(rows, np.float32).T
    names = ("turn", "tilt", "zoom", "sharpness", "change", "psnr", "ssim", "distance")
    size = (2, 0, *last.shape)
    return {
        "action": np.array([action.index for action in trial.route.actions]),
        "switch": np.array(trial.route.switch),
        "said": seen.action,
        "motion": seen.motion,
        "things": seen.things,
        "light": seen.light,
        "weather": seen.weather,
        "features": seen.features.astype(np.float32),
        **dict(zip(names, numbers)),
        "colour": numbers[len(names) :].T,
        "pictures": np.array(pictures, np.uint8).reshape(-1, 2, *last.shape),
        "film": np.concatenate([np.stack(pair) for pair in films], axis=1) if films else np.empty(size, np.uint8),
    }


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of the grey pictures (Wang et al. 2004, eq. 13, a Gaussian window of 1.5 pixels), -1..1."""
    x, y = picture @ LUMA, truth @ LUMA

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, _SSIM_WINDOW, truncate=3.5)

    mx, my, small, smaller = mean(x), mean(y), (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return float(
        (((2 * mx * my + small) * (2 * xy + smaller)) / ((mx**2 + my**2 + small) * (xx + yy + smaller))).mean()
    )

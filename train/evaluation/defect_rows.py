"""Rows of the table of defects: what a person sees, and its figure in one town and one world, read from stored rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from train.evaluation import defect_figures as figures
from train.evaluation.defect_trials import ENDED, FALLING, NOTHING, OTHERS, PHOTOGRAPH, SMOOTH, Plan
from train.evaluation.events import visible
from train.generator.measures import brightness, psnr, sharpness
from train.judge.network import Judge
from world_model.config import ModelConfig
from yume_gym.street.events import EVENTS

SETTLED = 1.0  # seconds from a start until a picture that stands still is judged
FELL = 2.0  # seconds from the begin of rain and snow until their movement is measured
FREE = 0.5  # of a walker's speed: one that is at least so fast is not held up by a wall
Rollout = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Town:
    """What was rolled out in one town: {world: {name: arrays of `roll_out`}}, and starts from pictures and answers, if tried."""

    rollouts: Mapping[str, Mapping[str, Rollout]]
    starts: Mapping[str, Rollout]
    answers: Mapping[str, Sequence[bool]]
    plan: Plan
    config: ModelConfig
    judge: Judge

    def pictures(self, world: str, name: str) -> np.ndarray:
        """uint8 [1 + B * K, H, W, 3] of a rollout."""
        return self.rollouts[world][name]["pictures"]

    def at(self, seconds: float) -> int:
        """Pictures shown after some seconds, whole blocks of them: the number of the last one in `pictures`."""
        block = self.config.frames_per_block
        return block * max(1, round(seconds * self.config.fps / block))


@dataclass(frozen=True)
class Row:
    """A line of the table: its short name, what it says, and its figure in one town and world; NaN where there is none."""

    name: str
    what: str
    figure: Callable[[Town, str], float]


def text_jump(town: Town, world: str) -> float:
    """Largest change between pictures in the first block with a text of nothing, over that of the same block without one."""
    begin = town.at(town.plan.before)
    block = slice(begin, begin + town.config.frames_per_block)
    jumps = [town.rollouts[world][f"text_{k}"]["change"][block].max() for k in range(len(NOTHING))]
    return figures.ratio(float(np.mean(jumps)), float(town.rollouts[world]["still"]["change"][block].max()))


def text_sharpness(town: Town, world: str) -> float:
    """Sharpness at the end of the second block with a text of nothing, over that of the last picture before."""
    begin = town.at(town.plan.before)
    late = begin + 2 * town.config.frames_per_block
    shares = [sharpness(town.pictures(world, f"text_{k}")[[late, begin]]) for k in range(len(NOTHING))]
    return float(np.mean([figures.ratio(*share) for share in shares]))


def not_understood(town: Town, world: str) -> float:
    """Share of texts of other things of which the environment says that they were not understood."""
    return float(np.mean(town.answers[world])) if world in town.answers else np.nan


def seen_kinds(town: Town, world: str, name: str) -> set[str]:
    """Kinds of events that the judge sees at the end of any block in which a rollout may have a text."""
    begin, block = town.at(town.plan.before), town.config.frames_per_block
    end = begin + town.at(town.plan.text)
    pictures = town.pictures(world, name)
    reading = town.judge.read(np.stack([pictures[k - block : k + 1] for k in range(begin + block, end + 1, block)]))
    return {kind for kind in EVENTS if visible(kind, reading).any()}


def unasked(town: Town, world: str) -> float:
    """Share of texts of other things with which the judge sees a kind of event that it does not see without a text."""
    before = seen_kinds(town, world, "still")
    found = [seen_kinds(town, world, f"text_{len(NOTHING) + k}") - before for k in range(len(OTHERS))]
    return float(np.mean([bool(kinds) for kinds in found]))


def ended(kind: str, town: Town, world: str) -> float:
    """Mean absolute difference, grey levels, to the rollout without the event, some time after its end."""
    last = town.pictures(world, f"event_{kind}")
    without = town.pictures(world, "still")[len(last) - 1]
    return float(abs(figures.differences(np.stack([last[-1], without]))).mean())


def border_change(inside: bool, town: Town, world: str) -> float:
    """Mean absolute difference of successive pictures while standing still, across block borders or inside blocks."""
    pictures = town.pictures(world, "still")[town.at(SETTLED) :]
    return figures.border_changes(pictures, town.config.frames_per_block)[inside]


def unsteadiness(town: Town, world: str) -> float:
    """Deviation over time of the brightness while standing still, grey levels."""
    return float(brightness(town.pictures(world, "still")[town.at(SETTLED) :]).std())


def early_sharpness(name: str, town: Town, world: str) -> float:
    """Mean sharpness of the first seconds of a rollout over that of the street's."""
    made, true = (
        float(sharpness(town.pictures(w, name)[1 : town.at(town.plan.walk) + 1]).mean()) for w in (world, "street")
    )
    return figures.ratio(made, true)


def stuck(town: Town, world: str) -> float:
    """Share of blocks with W held in which the picture hardly changes, of those in which the street's walker is not held up."""
    block, camera = town.config.frames_per_block, town.config.camera
    free = town.rollouts["street"]["wall"]["moved"] >= FREE * camera.walk_speed * block / town.config.fps
    free[0] = False  # the turn towards the wall
    return figures.stuck(town.rollouts[world]["wall"]["change"].reshape(-1, block).mean(axis=1), free)


def wall_change(town: Town, world: str) -> float:
    """Mean change between pictures with W held over that of the street's."""
    made, true = (float(town.rollouts[w]["wall"]["change"].mean()) for w in (world, "street"))
    return figures.ratio(made, true)


def uniform(town: Town, world: str) -> float:
    """Share of pictures that are nearly of one grey."""
    return float((town.rollouts[world]["wall"]["deviation"] < figures.UNIFORM).mean())


def grid(town: Town, world: str) -> float:
    """Grid energy of the pictures while night falls and while it ends."""
    return figures.grid_energy(town.pictures(world, "event_night")[town.at(town.plan.before) + 1 :])


def turned(town: Town, world: str) -> float:
    """PSNR, dB, of the pictures before and after a turn by 360 degrees."""
    pictures = town.pictures(world, "turn")
    return float(psnr(pictures[-1], pictures[town.config.frames_per_block]))


def reset_seconds(town: Town, world: str) -> float:
    """Seconds of `reset` with a picture; the street takes none."""
    if world != "dream" or not town.starts:
        return np.nan
    return float(np.mean([start["seconds"] for start in town.starts.values()]))


def kept_start(name: str, town: Town, world: str) -> float:
    """Seconds for which the picture stays like the start; the street takes none."""
    return figures.kept(town.starts[name]["pictures"], town.config.fps) if world == "dream" and town.starts else np.nan


def falling(kind: str, town: Town, world: str) -> float:
    """Fine change of the pictures in rain or snow while standing still, over that of the street's."""
    first, end = (town.at(town.plan.before + part) for part in (FELL, town.plan.event))
    made, true = (
        figures.fine_change(town.pictures(w, f"event_{kind}")[min(first, end - 1) : end + 1]) for w in (world, "street")
    )
    return figures.ratio(made, true)


def table(plan: Plan) -> list[Row]:
    """The rows, in the order of the page."""
    words = {"night": "night", "fog": "fog", "heavy_rain": "rain"}
    return [
        Row("text_jump", "a text of nothing: largest change where it begins, over that without it", text_jump),
        Row("text_sharpness", "a text of nothing: sharpness a block later, share of before", text_sharpness),
        Row("not_understood", "a text of other things: `info` says so, or an error, share", not_understood),
        Row("unasked", "a text of other things: the judge sees another event, share", unasked),
        *(
            Row(f"ended_{word}", f"{word}, {plan.after:g} s after its end: grey levels to without", partial(ended, kind))
            for kind, word in words.items()
            if kind in ENDED
        ),
        Row("border", "standing still: change at block borders, grey levels", partial(border_change, False)),
        Row("inside", "standing still: change inside blocks, grey levels", partial(border_change, True)),
        Row("unsteadiness", "standing still: brightness over time, deviation, grey levels", unsteadiness),
        Row("sharp_walk", f"sharpness, W held, first {plan.walk:g} s, share of the street's", partial(early_sharpness, "walk")),
        Row("sharp_still", f"sharpness, standing still, first {plan.walk:g} s, share", partial(early_sharpness, "still")),
        Row("stuck", f"beside walls, {plan.wall:g} s of W: blocks that hardly change, share of the free", stuck),
        Row("wall_change", "beside walls: change between pictures, share of the street's", wall_change),
        Row("uniform", "beside walls: nearly uniform pictures, share", uniform),
        Row("grid", f"night falls and ends: grid of {figures.GRID} pixels over other neighbours", grid),
        Row("turn", "turn by 360 degrees: PSNR, dB", turned),
        Row("reset", "start from a picture: seconds of `reset`", reset_seconds),
        *(
            Row(f"kept_{word}", f"start from {name}: s of {plan.picture:g} above {figures.LIKE:g} dB", partial(kept_start, name))
            for name, word in ((SMOOTH, "smooth"), (PHOTOGRAPH, "photograph"))
        ),
        *(
            Row(f"falling_{word}", f"{word}: fine change, share of the street's", partial(falling, kind))
            for word, kind in FALLING.items()
        ),
    ]  # fmt: skip

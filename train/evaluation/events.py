"""Do words change the world, in time, and only while they hold?

From one place the world is stepped with the same keys without an event, and with each kind of event in a phrasing it was
trained on and in one it never saw. The keys look and walk to and fro, so that what appears ahead stays in view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.evaluation.control import mean
from train.evaluation.worlds import Scene, World
from train.judge.data import THINGS, seen_things
from train.judge.network import SEEN, Judge, Reading
from train.street.routes import TO_AND_FRO, open_start
from train.street.walks import EVENT_WEIGHTS, LATER_EVENTS
from world_model.actions import Action
from yume_gym.street.event_kinds import KINDS
from yume_gym.street.events import sample_phrase
from yume_gym.street.simulator import LIGHTS, WEATHERS, StreetSimulator

PHRASINGS = ("seen", "unseen")
IN_VIEW = 2  # blocks at the end of which the street itself must show a thing, for a scene to be a trial of it


@dataclass(frozen=True)
class Plan:
    """Blocks before an event, while it lasts and after it; the light and weather of the scenes, one scene each.

    With `once`, a kind that an earlier scene had is left out. Kinds that came later are tried under the same skies, in further
    scenes after all those of the others, which are as they were without them.
    """

    before: int = 2
    during: int = 6
    after: int = 4
    scenes: tuple[tuple[str, str], ...] = 2 * (
        ("day", "clear"),
        ("day", "clear"),
        ("overcast", "clear"),
        ("golden", "clear"),
    )
    once: bool = False


def kinds_for(scene: tuple[str, str]) -> list[str]:
    """Events that would change something in this light and weather, but for those that came later."""
    light, weather = scene
    return [
        kind
        for kind, (_, same) in EVENT_WEIGHTS.items()
        if same not in ({light, weather} - ({"day"} if weather != "clear" else set()))
    ]


def make_scenes(street: StreetSimulator, plan: Plan, seed: int) -> list[tuple[Scene, list[str]]]:
    """Scenes, each with the kinds of events to try in it: a thing is tried from a place where the street itself shows it."""
    made: list[tuple[Scene, list[str]]] = []
    tried: set[str] = set()
    skies = [(sky, kinds_for(sky)) for sky in plan.scenes] + [(sky, list(LATER_EVENTS)) for sky in plan.scenes]
    for number, ((light, weather), kinds) in enumerate(skies):
        rng = np.random.default_rng([seed, number])
        left = [kind for kind in kinds if not (plan.once and kind in tried)]
        tried |= set(left)
        while left:
            picture = open_start(street, rng, light, weather)
            here = [kind for kind in left if kind not in THINGS or in_view(street, kind, plan)]
            left = [kind for kind in left if kind not in here]
            if here:
                made.append((Scene(street.get_state(), picture, seed * 1000 + len(made)), here))
    return made


def keys_of(plan: Plan) -> list[Action]:
    """The keys of a trial, block by block."""
    return [TO_AND_FRO[k % len(TO_AND_FRO)] for k in range(plan.before + plan.during + plan.after)]


def in_view(street: StreetSimulator, kind: str, plan: Plan) -> bool:
    """Whether a thing that comes where `street` stands now fills enough of the picture at the end of `IN_VIEW` blocks of a trial.

    Told by the pixels that it changes, by no judge. The street stands there again afterwards.
    """
    begin, shown = street.get_state(), 0
    for block, action in enumerate(keys_of(plan)[: plan.before + plan.during]):
        if block == plan.before:
            street.set_event(kind)
        street.set_state(street.ahead(action)[0][-1])
        if block >= plan.before:
            shown += int(seen_things(street, street.render())[THINGS.index(kind)] == 1)
    street.set_state(begin)
    return shown >= min(IN_VIEW, plan.during // 2)


def visible(kind: str, reading: Reading) -> np.ndarray:
    """[B] whether an event of this kind can be seen in the last picture of each block."""
    if kind in THINGS:
        return reading.things[:, THINGS.index(kind)] > SEEN
    wanted = KINDS[kind]
    seen = np.ones(len(reading.light), bool)
    if wanted.light is not None:
        seen &= reading.light == LIGHTS.index(wanted.light)
    if wanted.weather is not None:
        seen &= reading.weather == WEATHERS.index(wanted.weather.removeprefix("heavy_"))
    return seen


def run_scene(world: World, judge: Judge, scene: Scene, kinds: Sequence[str], plan: Plan, seed: int) -> dict[str, Any]:
    """One scene: a row for each kind and phrasing, and what the judge imagines where there is no event."""
    lead, state = [scene.picture], world.start(scene)
    keys = keys_of(plan)
    for action in keys[: plan.before]:
        state, frames = world.step(state, action)
        lead.append(frames[-1])

    def go_on(event: str | None) -> tuple[Reading, np.ndarray]:
        """(reading, last pictures [B, H, W, 3]) of the blocks from the event's onset on."""
        here, last, blocks = state, lead[-1], []
        for k, action in enumerate(keys[plan.before :]):
            here, frames = world.step(here, action, event if k < plan.during else None)
            blocks.append(np.concatenate([last[None], frames]))
            last = frames[-1]
        return judge.read(np.stack(blocks)), np.stack([block[-1] for block in blocks])

    held = np.array([action.index for action in keys[plan.before :]])
    lasting = slice(0, plan.during)
    plain, without = go_on(None)
    rng = np.random.default_rng([seed, scene.seed])
    rows, strips = [], [without]
    for kind in kinds:
        for phrasing in PHRASINGS:
            text = sample_phrase(kind, rng, held_out=phrasing == "unseen")
            reading, pictures = go_on(text)
            shown = visible(kind, reading)
            rows.append(
                {
                    "kind": kind,
                    "phrasing": phrasing,
                    "text": text,
                    "seen": bool(shown[lasting].any()),
                    "first_block": int(shown[lasting].argmax()) + 1 if shown[lasting].any() else None,
                    "gone": not shown[-1] if plan.after else None,
                    "imagined": bool(visible(kind, plain)[lasting].any()),
                    "control": mean((reading.action == held)[lasting]),
                    "control_without": mean((plain.action == held)[lasting]),
                    # does the scene come back? the last picture beside that of the same walk without the event
                    "return_distance": float(judge.distance(pictures[-1:], without[-1:])[0]),
                    "during_distance": float(
                        judge.distance(pictures[plan.during - 1 : plan.during], without[plan.during - 1 : plan.during])[
                            0
                        ]
                    ),
                }
            )
            strips.append(pictures)
    return {"rows": rows, "strips": np.stack(strips)}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all rows: recall by phrasing and kind, false triggers, blocks until visible, return, control."""
    by_phrasing = {phrasing: [row for row in rows if row["phrasing"] == phrasing] for phrasing in PHRASINGS}
    kinds = sorted({row["kind"] for row in rows})
    firsts = [row["first_block"] for row in rows if row["seen"]]
    returned = [row for row in rows if row["gone"] is not None]
    return {
        "trials": len(rows),
        "recall": {phrasing: _share(part, "seen") for phrasing, part in by_phrasing.items()},
        "kinds": {
            kind: {p: _share([r for r in part if r["kind"] == kind], "seen") for p, part in by_phrasing.items()}
            for kind in kinds
        },
        "false_triggers": _share(rows, "imagined"),
        "imagined": {kind: _share([row for row in rows if row["kind"] == kind], "imagined") for kind in kinds},
        "blocks_until_visible": float(np.median(firsts)) if firsts else None,
        "visible_within_2": mean(np.array([first <= 2 for first in firsts])),
        "gone_after": _share([row for row in returned if row["seen"]], "gone"),
        "return_distance": _share(returned, "return_distance"),
        "during_distance": _share(rows, "during_distance"),
        "control": _share(rows, "control"),
        "control_without": _share(rows, "control_without"),
    }


def _share(rows: Sequence[dict[str, Any]], name: str) -> float:
    return mean(np.array([row[name] for row in rows], float))

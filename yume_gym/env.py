"""`YumeWorld-v0`: a world that a neural network dreams, as a Gymnasium environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from world_model.checks import check_whole, short
from world_model.config import ModelConfig
from world_model.model import WorldModel
from world_model.released.placement import load_options as read_load_options
from world_model.state import WorldState
from world_model.text import NO_TEXT
from world_model.threads import fair_threads
from yume_gym.first_person import FirstPersonEnv, Outcome
from yume_gym.pictures import load_picture
from yume_gym.rewards import LEARNED, EpisodeReward, Reward, find_reward
from yume_gym.street.events import check_text


class YumeWorldEnv(FirstPersonEnv):
    """A world that a video diffusion transformer dreams while you act in it: a first-person one, or any recorded one.

    ## Description

    The world is a `world_model.model.WorldModel`: it is given the pictures seen so far, the action and a line of text,
    and dreams the next block of pictures. Nothing is simulated. The `street` model is a first-person world without a
    goal and without an end. A model that `train.world` made of recorded episodes has the actions, rewards and ends of
    the recorded environment, and texts only where the recording had some. A world starts from any picture, from a text,
    from both, or from a picture shipped with the model; events such as "a heavy rainstorm begins" can be asked for at
    any step.

    One step is one block. With the `street` model a block is 4 frames at 8 frames a second: half a second of the
    world's time. A held walking key then means 1.25 m, a held arrow key 22.5 degrees to a side or 15 up or down.
    Frames per step and frames per second are the model's: `metadata["frames_per_step"]` and
    `metadata["render_fps"]`. How long a step took is `info["latency_ms"]`.

    ## Action Space

    That of the model (`model.config.action`). First-person models have `Discrete(81)`: 9 moves x 9 looks,
    `index = 9 * move + look`. Action 0 stands still.

    | Num | Move (keys)               | Look (arrows)      |
    |-----|---------------------------|--------------------|
    | 0   | none                      | none               |
    | 1   | forward (W)               | right (→)          |
    | 2   | backward (S)              | left (←)           |
    | 3   | left (A)                  | up (↑)             |
    | 4   | right (D)                 | down (↓)           |
    | 5   | forward and left (W+A)    | up and right (↑→)  |
    | 6   | forward and right (W+D)   | up and left (↑←)   |
    | 7   | backward and left (S+A)   | down and right (↓→)|
    | 8   | backward and right (S+D)  | down and left (↓←) |

    `world_model.actions.Action.from_keys("W+A", "→").index` names an action by its keys, `Action.from_index` goes back,
    `get_action_meanings()` lists all. `get_keys_to_action()` serves the keyboard:

    Models of other recordings have the recorded space: `Discrete`, `MultiDiscrete`, `MultiBinary` or `Box` (float32),
    flat, with discrete actions counted from 0. Their keys are in `yume_gym.keyboard`: arrows and space for actions named
    as in the Arcade Learning Environment, numbers for others. Such actions move no camera.

    >>> from gymnasium.utils.play import play
    >>> play(gymnasium.make("YumeWorld-v0", render_mode="rgb_array"), fps=2, zoom=6)  # doctest: +SKIP

    ## Observation Space

    `frames="last"`: `Box(0, 255, (H, W, 3), uint8)`, the last frame of the block (64 x 96 with the `street` model).

    `frames="block"`: `Box(0, 255, (H, W, 3 * T), uint8)`, all T frames of the block stacked along the channels, the
    oldest first, as image policies and frame stacks have it; `info["frames"]` holds the same as (T, H, W, 3). After a
    reset all T frames are the starting picture.

    ## Rewards

    A model whose weights have heads (`heads.safetensors`) predicts the reward of the recorded environment: the most
    likely of the recorded values, or an expected value where there are more than eight. Other models keep no score,
    their reward is 0.0. The argument `reward` gives another one: a built-in name, a function
    `(previous_frames, action, current_frames) -> (reward, terminated)`, or an `EpisodeReward`, which may remember the
    episode and look at the model's latents; see `yume_gym.rewards`.

    | Reward                              | Pays for a step                                            | Range         |
    |-------------------------------------|------------------------------------------------------------|---------------|
    | `"motion"`                          | mean absolute change between successive frames             | 0..1          |
    | `"novelty"`, `Novelty(memory=64)`   | distance to the nearest picture seen in this episode       | 0 and more    |
    | `"goal:PATH"`, `GoalPicture(image)` | by how much the distance to `image` fell, and 1 within 0.2 | about -1..2   |
    | `"text:WORDS"`, `TextGoal(text)`    | by how much the text fits better, and 1 where it fits      | -1..2         |
    | `"beacon"`                          | the way to the pillar of light, and 10 where it is reached | -1..11        |
    | `"learned"`                         | that of the heads, as with None; ValueError without heads  | the recorded  |

    `"beacon"` and `TextGoal` need weights with a head for them, as `street` has (`train.picture_heads`). With `"beacon"`
    worlds start from pictures that show a pillar. Both terminate where the goal is reached.

    The last frame of a block is compared. A distance is the root mean square difference in the latents of the model's
    autoencoder, in units of the median between the model's starting pictures: 0 is the same picture, 1 an unrelated
    one. Within its threshold `GoalPicture` terminates the episode. Its rewards add up to the fall of the distance, which
    is about 1 at most, and the bonus of 1.

    ## Starting State

    Given by the options of `reset`; without a picture and a text, a shipped starting picture drawn with the seed (a
    model that ships none dreams one from nothing). A model that knows towns by heart, as `street` does, looks for the
    picture in all of them and begins where it was taken, or where it looks most like it; a text alone chooses a view.

    ## Episode End

    An episode terminates when the reward function says so, or without one when the model's heads do. It is truncated
    when three blocks in a row are out of distribution, further from the training data than usual ones; one odd picture
    alone does not end it. Models without heads never truncate. Pass `max_episode_steps` to `gymnasium.make` for a limit.

    ## Information

    Every object in `info` is fresh, as is the observation.

    | Key          | Value                                                                         |
    |--------------|-------------------------------------------------------------------------------|
    | `frames`     | uint8 (T, H, W, 3): the block; after a reset, the starting picture T times    |
    | `keys`       | walking keys held, such as "W+A"; "" for none                                 |
    | `look`       | arrow keys held, such as "↑→"; "" for none                                    |
    | `event`      | the event text active in this step, or None                                   |
    | `events`     | the schedule, {step: text or None}, triggered events included                 |
    | `step`       | steps taken since the reset                                                   |
    | `latency_ms` | milliseconds that the call took (readings compare equal, see `WallClock`)     |

    `keys` and `look` are of first-person models only. A step with a model that has heads adds:

    | Key                       | Value                                                                   |
    |---------------------------|-------------------------------------------------------------------------|
    | `reward_confidence`       | probability of the predicted reward, 0..1                               |
    | `termination_probability` | that the episode ends with this step, 0..1                              |
    | `out_of_distribution`     | whether this block is unlike all training data (`Calibration`)          |

    A model whose weights say what it was trained on (`known.json`) adds what became of a text, with each step that has an
    event and with a reset that has a text, and of a starting picture:

    | Key                | Value                                                                          |
    |--------------------|--------------------------------------------------------------------------------|
    | `text_understood`  | whether a text of training is as near as texts of training are to each other   |
    | `text_nearest`     | that text                                                                      |
    | `text_similarity`  | the cosine of both, -1..1                                                      |
    | `picture_distance` | how far the starting picture is from those of training; about 1 is usual       |

    ## Arguments

    | Argument      | Default    | Meaning                                                                             |
    |---------------|------------|-------------------------------------------------------------------------------------|
    | `model`       | `"street"` | "street", "street-generator", "yume-5b" (docs/yume-5b.md), a path or a `WorldModel`  |
    | `reward`      | `None`     | None, the name of a built-in reward, an `EpisodeReward`, or a function              |
    | `render_mode` | `None`     | `"rgb_array"`, `"rgb_array_list"` (every frame since the last call) or `"human"`    |
    | `device`      | `"auto"`   | where the network runs, such as `"cpu"` or `"cuda"`                                 |
    | `dtype`       | `"auto"`   | `"float32"` or `"bfloat16"`; states restore bit by bit on a CPU in float32          |
    | `frames`      | `"last"`   | `"last"` or `"block"`: what is observed                                             |
    | `steps`       | `None`     | denoising steps a block; None is the model's own number                             |
    | `size`        | `None`     | (height, width) of the pictures, for models that dream at any size ("yume-5b")      |
    | `load_options`| `None`     | a dict of more options of loading: `world_model.released.placement.LoadOptions`              |

    `reset(seed=..., options=...)` takes these options, all optional:

    | Option   | Value                                                                                             |
    |----------|---------------------------------------------------------------------------------------------------|
    | `image`  | path, PIL image or uint8 array (H, W, 3), at least 16 x 16: cut to the model's aspect and resized |
    | `text`   | what the world looks like, at most 500 characters                                                 |
    | `events` | str (from the first step), list of str (a new one every 8 steps) or {step: str}; "" ends an event |

    A model that was trained without text refuses texts and events with a ValueError.

    `trigger_event(text)` begins an event with the next step; `None` or `""` ends it. `get_state()` and
    `set_state(state)` save and restore a world and what its reward remembers, in memory or pickled. What cannot be done
    raises: TypeError for a wrong kind of thing, ValueError for a wrong value, FileNotFoundError for a missing file,
    `gymnasium.error.ResetNeeded` before the first reset. The world is then as it was before the call.

    ## Example

    >>> import gymnasium, yume_gym
    >>> from world_model.actions import Action
    >>> env = gymnasium.make("YumeWorld-v0", render_mode="rgb_array")
    >>> observation, info = env.reset(seed=0, options={"events": {8: "a heavy rainstorm begins"}})
    >>> observation, reward, terminated, truncated, info = env.step(Action.from_keys("W", "→").index)
    >>> env.unwrapped.trigger_event("night falls")

    ## Version History

    * v0: first version
    """

    accepted_options = ("image", "text", "events")

    def __init__(
        self,
        model: str | os.PathLike | WorldModel = "street",
        reward: str | Reward | None = None,
        render_mode: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        frames: Literal["last", "block"] = "last",
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        load_options: Mapping[str, Any] | None = None,
    ) -> None:
        steps = None if steps is None else check_whole("steps", steps, least=1)
        self._reward = None if isinstance(reward, str) and reward == LEARNED else find_reward(reward, (LEARNED,))
        if load_options is not None and not isinstance(load_options, Mapping):
            raise TypeError(f"load_options must be a dict of options of loading, or None; got {short(load_options)}")
        options = {"device": device, "dtype": dtype, "size": size, **(load_options or {})}
        read_load_options({name: value for name, value in options.items() if name != "size"}).torch_device  # noqa: B018
        self._loading = None if isinstance(model, WorldModel) else (model, options)
        if isinstance(model, WorldModel) and options != {"device": "auto", "dtype": "auto", "size": None}:
            raise ValueError(
                "device, dtype, size and load_options are chosen where a model is loaded: leave them out ('auto', None)"
            )
        self._model = model if isinstance(model, WorldModel) else WorldModel.load(model, **options)
        if isinstance(reward, str) and reward == LEARNED and self._model.heads is None:
            raise ValueError(
                f"the weights of {self._model.config.name!r} have no heads, so no learned reward: train them with "
                "train.world, or use None, a name or a function"
            )
        self.sampler_steps = steps
        super().__init__(self._model.config, reward=self._bound_reward(), render_mode=render_mode, frames=frames)

    @property
    def model(self) -> WorldModel:
        """The network that dreams, for sharing it with other environments."""
        return self._model

    def _bound_reward(self) -> Reward | None:
        return self._reward.bind(self._model) if isinstance(self._reward, EpisodeReward) else self._reward

    @property
    def _kind(self) -> str:
        return f"{super()._kind} of the model {self._model.config.name!r}"

    def _check_event(self, text: str) -> None:
        check_told(self._model.config)

    def _check_world(self, world: Any) -> None:
        try:
            self._model.check_state(world)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a state that get_state() gives: {error}; take it again with get_state()") from error
        if len(world) != 1:
            raise ValueError(
                f"the state of an environment holds 1 world, got {len(world)}: take it again with get_state()"
            )

    def _begin(self, options: Mapping[str, Any], rng: np.random.Generator) -> Outcome:
        image, text, seed = world_start(self._model, options, rng, self.reward_fn)
        with fair_threads(self._model.device):
            world = self._model.start(images=[image], texts=[text], seeds=[seed])
        return Outcome(world, self._model.preview(world), info=start_info(self._model, image, text))

    def _advance(self, world: Any, action: Any, event: str | None, event_begins: bool) -> Outcome:
        with fair_threads(self._model.device):
            world, frames = self._model.step(world, [action], events=[event], steps=self.sampler_steps)
        return Outcome(world, frames[0], **judged(self._model, world, 0, event))

    def __getstate__(self) -> dict[str, Any]:
        kept = super().__getstate__()
        if self._loading is None:
            return kept
        return {**kept, "_model": None, "reward_fn": None}  # a named model is loaded again, not copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._loading is not None:
            model, options = self._loading
            self._model = WorldModel.load(model, **options)
            self.reward_fn = self._bound_reward()


def judged(model: WorldModel, worlds: WorldState, row: int, event: str | None) -> dict[str, Any]:
    """What a model says of the last block of one world and of the event in it, as fields of an `Outcome`: its heads, if it has any,
    and `text_info`."""
    info, outcome = text_info(model, event), worlds.outcomes[row] if worlds.outcomes else None
    if outcome is None:
        return {"info": info}
    info |= {
        "reward_confidence": float(outcome.reward_confidence),
        "termination_probability": float(outcome.termination_probability),
        "out_of_distribution": bool(outcome.out_of_distribution),
    }
    ended, strange = bool(outcome.terminated), bool(outcome.truncated)
    return {"reward": float(outcome.reward), "terminated": ended, "truncated": strange, "info": info}


def start_info(model: WorldModel, image: np.ndarray | None, text: str | None) -> dict[str, Any]:
    """What a model makes of a picture and a text that a world starts from, for `info`; nothing where its weights do not say."""
    distance = None if image is None else model.picture_distance(image)
    return {**({} if distance is None else {"picture_distance": distance}), **text_info(model, text)}


def text_info(model: WorldModel, text: str | None) -> dict[str, Any]:
    """What a model makes of a text, for `info`; nothing without a text, or where its weights do not say."""
    nearest = model.nearest_text(text) if text else None
    if nearest is None:
        return {}
    return {
        "text_understood": nearest.understood,
        "text_nearest": nearest.text,
        "text_similarity": nearest.similarity,
    }


def check_told(config: ModelConfig) -> None:
    """Raises ValueError for a model that was trained without text: it can be told nothing."""
    if config.text.kind == "none":
        raise ValueError(f"{config.name!r}: {NO_TEXT}")


def world_start(
    model: WorldModel, options: Mapping[str, Any], rng: np.random.Generator, reward: Reward | None = None
) -> tuple[np.ndarray | None, str | None, int]:
    """What one world starts from: (picture uint8 [H, W, 3] or None, text or None, seed), as reset's `options` ask. Where they ask
    for nothing, a `reward` may bring a picture.

    Draws from `rng` the same way whatever the options are. Raises what `load_picture` and `check_text` raise.
    """
    seed, choice = (int(number) for number in rng.integers(2**31, size=2))
    text = check_text(options["text"], "options['text']") if "text" in options else None
    if text is not None:
        check_told(model.config)
    if "image" in options:
        return load_picture(options["image"], model.config.height, model.config.width), text, seed
    if text is not None:
        return None, text, seed
    brought = reward.starting_image(choice) if isinstance(reward, EpisodeReward) else None
    if brought is None and model.starts is not None:
        brought = model.starting_image(choice)
    return brought, text, seed

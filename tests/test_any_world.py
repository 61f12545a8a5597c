"""YumeWorld-v0 with models of recorded environments: their actions, rewards, ends, texts and keys, on tiny random weights."""

from __future__ import annotations

import dataclasses
import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image

import yume_gym  # noqa: F401
from agents.evaluate import evaluate
from agents.worlds import Where
from train.generator.shapes import recorded_config
from train.recordings import Recording
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig
from world_model.heads import Calibration, HeadsConfig, OutcomeHeads, save_heads
from world_model.model import WorldModel
from world_model.weights import save_weights
from yume_gym.env import YumeWorldEnv
from yume_gym.keyboard import action_space, drawn_keys, keyboard, plain
from yume_gym.play.dreamer import Dreamer, replay_frames
from yume_gym.play.replay import read_replay
from yume_gym.play.session import Session
from yume_gym.play.start import Start, prepare
from yume_gym.play.world import Frame
from yume_gym.rewards import call_reward

SIDE, STARTS = 64, 3
SPACES = {
    "discrete": ActionSpec("discrete", (4,), meanings=("NOOP", "FIRE", "RIGHT", "LEFT")),
    "multi_discrete": ActionSpec("multi_discrete", (3, 2)),
    "multi_binary": ActionSpec("multi_binary", (2, 2, 2)),
    "box": ActionSpec("box", low=(-1.0, -1.0), high=(1.0, 1.0)),
}
GYMNASIUM = {
    "discrete": gym.spaces.Discrete(4),
    "multi_discrete": gym.spaces.MultiDiscrete([3, 2]),
    "multi_binary": gym.spaces.MultiBinary(3),
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
}


def config_of(kind: str) -> ModelConfig:
    return recorded_config(
        kind, Recording(f"{kind}-v0", SIDE, SIDE, 10.0, SPACES[kind], frames_per_step=2), False, "tiny"
    )


def heads_of(config: ModelConfig, **changed: object) -> OutcomeHeads:
    sizes = HeadsConfig(
        "classes", (-1.0, 0.0, 1.0), config.dit.latent_channels, config.block_latents, config.action_width,
        width=8, hidden=8, embedding=4, calibration=Calibration(**changed),
    )  # fmt: skip
    torch.manual_seed(0)
    return OutcomeHeads(sizes).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_dit, make_vae) -> dict[str, Path]:
    """Weights of a model for each action space, with starting pictures and heads; "plain" is without heads."""
    found = {}
    for kind in (*SPACES, "plain"):
        config = config_of("discrete" if kind == "plain" else kind)
        found[kind] = folder = tmp_path_factory.mktemp(kind)
        pictures = np.random.default_rng(0).integers(0, 256, (STARTS * SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pictures).save(folder / "starts.png")
        tensors = {"dit.safetensors": make_dit(config).state_dict(), "vae.safetensors": make_vae(config).state_dict()}
        save_weights(folder, config, tensors, {})
        if kind != "plain":
            save_heads(folder, heads_of(config, termination_threshold=1.0))
    return found


@pytest.fixture(scope="module")
def models(folders) -> dict[str, WorldModel]:
    return {kind: WorldModel.load(folder, device="cpu", dtype="float32") for kind, folder in folders.items()}


def with_heads(model: WorldModel, heads: OutcomeHeads | None) -> WorldModel:
    return WorldModel(model.config, model.dit, model.vae, model.conditioning, model.starts, heads)


def sure_heads(config: ModelConfig, reward: int, ends: float, **changed: object) -> OutcomeHeads:
    """Heads that always say reward class number `reward`, and the termination logit `ends`."""
    heads = heads_of(config, **changed)
    for layer in (heads.reward, heads.termination):
        layer.weight.zero_()
        layer.bias.zero_()
    heads.reward.bias[reward] = 3.0
    heads.termination.bias.fill_(ends)
    return heads


def actions_of(kind: str, count: int) -> list:
    space = action_space(SPACES[kind])
    space.seed(3)
    return [space.sample() for _ in range(count)]


def same(first, second) -> bool:
    return np.array_equal(first[0], second[0]) and first[1:4] == second[1:4] and first[4].keys() == second[4].keys()


@pytest.mark.parametrize("kind", SPACES)
def test_gymnasium_checker_finds_nothing(folders, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("YumeWorld-v0", model=str(folders[kind]), render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("kind", SPACES)
def test_stable_baselines_checker_finds_nothing(folders, kind):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make("YumeWorld-v0", model=str(folders[kind])).unwrapped, warn=True)


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_and_pace_are_the_recordings(models, kind):
    env = YumeWorldEnv(models[kind])
    assert env.action_space == GYMNASIUM[kind]
    assert env.observation_space == gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    assert (env.metadata["render_fps"], env.metadata["frames_per_step"]) == (10, 2)
    _, info = env.reset(seed=0)
    assert not {"keys", "look", "reward_confidence"} & info.keys()
    info = env.step(actions_of(kind, 1)[0])[4]
    assert {"reward_confidence", "termination_probability", "out_of_distribution"} <= info.keys()
    assert len(env.get_action_meanings()) == {"discrete": 4, "multi_discrete": 2, "multi_binary": 3, "box": 2}[kind]


@pytest.mark.parametrize("kind", SPACES)
def test_steps_repeat_and_actions_matter(models, kind):
    env, actions = YumeWorldEnv(models[kind]), actions_of(kind, 3)

    def walk() -> list:
        return [env.reset(seed=5)[0], *[env.step(action) for action in actions]]

    first, second = walk(), walk()
    assert np.array_equal(first[0], second[0]) and all(map(same, first[1:], second[1:]))
    assert first[0].tobytes() in {picture.tobytes() for picture in models[kind].starts}
    different = {env.step(action)[0].tobytes() for action in actions if env.reset(seed=5)}
    assert len(different) == len({np.asarray(action).tobytes() for action in actions})


@pytest.mark.parametrize("kind", SPACES)
def test_states_and_environments_are_saved(folders, kind):
    env = gym.make("YumeWorld-v0", model=str(folders[kind]), device="cpu").unwrapped
    actions = actions_of(kind, 4)
    env.reset(seed=1)
    env.step(actions[0])
    state, stored = pickle.dumps(env.get_state()), pickle.dumps(env)
    after = [env.step(action) for action in actions[1:]]
    env.set_state(pickle.loads(state))
    assert all(map(same, after, [env.step(action) for action in actions[1:]]))
    other = pickle.loads(stored)
    assert all(map(same, after, [other.step(action) for action in actions[1:]]))


def test_the_camera_of_other_actions_stays(models):
    model = models["box"]
    state = model.start([model.starts[0]] * 2, ["", ""], [0, 1])
    state, _ = model.step(state, [np.float32([1, 1]), np.float32([-1, 0])])
    assert not state.worlds.yaw.any() and not state.worlds.pitch.any()


def test_batches_say_what_worlds_alone_say(models):
    model, actions = models["multi_discrete"], actions_of("multi_discrete", 2)
    state, _ = model.step(model.start(list(model.starts[:2]), ["", ""], [3, 4]), actions)
    for world in range(2):
        alone, _ = model.step(model.start([model.starts[world]], [""], [3 + world]), actions[world : world + 1])
        for field in dataclasses.fields(alone.outcomes[0]):
            assert torch.equal(getattr(alone.outcomes[0], field.name), getattr(state.outcomes[world], field.name))


def test_learned_reward_and_end(models):
    model = models["discrete"]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 2, -4.0)))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (1.0, False, False) and type(reward) is float
    assert info["reward_confidence"] == pytest.approx(np.exp(3) / (np.exp(3) + 2), rel=1e-4)
    assert info["termination_probability"] == pytest.approx(1 / (1 + np.exp(4)), rel=1e-4)
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 0, 4.0)), reward="learned")
    env.reset(seed=0)
    assert env.step(1)[1:4] == (-1.0, True, False)
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 0, 4.0)), reward=lambda *_: (7, False))
    env.reset(seed=0)
    assert env.step(1)[1:4] == (7.0, False, False)


def test_a_model_without_heads_has_no_learned_reward(models):
    env = YumeWorldEnv(models["plain"])
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(0)
    assert (reward, terminated) == (0.0, False) and "reward_confidence" not in info
    with pytest.raises(ValueError, match="no heads"):
        YumeWorldEnv(models["plain"], reward="learned")


def test_three_strange_blocks_in_a_row_truncate(models):
    model = models["discrete"]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 1, -9.0, ood_threshold=0.0)))
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(2)]
    state = env.get_state()
    steps.append(env.step(0))
    assert [step[3] for step in steps] == [False, False, True] and all(step[4]["out_of_distribution"] for step in steps)
    env.set_state(state)
    assert env.step(0)[3]
    env.reset(seed=0)
    assert not env.step(0)[3]
    env = YumeWorldEnv(with_heads(model, sure_heads(model.config, 1, -9.0, ood_threshold=1e9)))
    env.reset(seed=0)
    assert not any(env.step(0)[4]["out_of_distribution"] for _ in range(4))


@pytest.mark.parametrize(
    ("kind", "action", "error", "words"),
    [
        ("discrete", 4, ValueError, "outside"),
        ("discrete", 1.0, TypeError, "whole numbers"),
        ("discrete", None, TypeError, "whole numbers"),
        ("multi_discrete", [2, 2], ValueError, "outside"),
        ("multi_discrete", 1, ValueError, "shape"),
        ("multi_binary", [0, 1], ValueError, "shape"),
        ("box", [0.0, np.nan], ValueError, "outside"),
        ("box", "up", TypeError, "numbers"),
    ],
)
def test_bad_actions_are_explained(models, kind, action, error, words):
    env = YumeWorldEnv(models[kind])
    env.reset(seed=0)
    with pytest.raises(error, match=words):
        env.step(action)


def test_a_model_without_text_says_so(models):
    env = YumeWorldEnv(models["discrete"])
    env.reset(seed=0)
    for call in (
        lambda: env.trigger_event("rain begins"),
        lambda: env.reset(options={"text": "a wall of bricks"}),
        lambda: env.reset(options={"events": {2: "rain begins"}}),
        lambda: env.model.start([None], ["a wall"], [0]),
        lambda: env.model.step(env.get_state().episode.world, [0], ["rain begins"]),
    ):
        with pytest.raises(ValueError, match="trained without text"):
            call()
    env.trigger_event(None)
    env.step(0)


def test_a_world_can_start_from_any_picture_or_from_nothing(models):
    env = YumeWorldEnv(models["box"])
    picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert np.array_equal(env.reset(seed=0, options={"image": picture})[0], picture)
    model = models["box"]
    bare = YumeWorldEnv(WorldModel(model.config, model.dit, model.vae, model.conditioning, None, model.heads))
    bare.reset(seed=0)
    bare.step([0.5, -0.5])


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        ((float("nan"), False), ValueError, "finite"),
        ((float("inf"), False), ValueError, "finite"),
        ((1.0, 0.0), TypeError, "terminated: bool"),
        ((1.0, "no"), TypeError, "terminated: bool"),
        (("1", False), TypeError, "reward: float"),
        (1.0, TypeError, "reward: float"),
    ],
)
def test_what_reward_functions_return_is_checked(result, error, words):
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(error, match=words):
        call_reward(lambda *_: result, frames, 0, frames)
    assert call_reward(lambda *_: (np.float32(2), np.bool_(True)), frames, 0, frames) == (2.0, True)


@pytest.mark.parametrize("kind", SPACES)
def test_random_agent_plays_any_world(models, kind):
    found = evaluate("random", Where(arguments={"model": models[kind]}, longest=3), episodes=1, worlds=1, seed=0)
    assert found.lengths == (3,)


# ---- keys ---------------------------------------------------------------------------------------------------------------


def test_names_of_actions_choose_their_keys():
    names = ("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "UPRIGHTFIRE", "pickup")
    spec = ActionSpec("discrete", (7,), meanings=names)
    keys = keyboard(spec)
    pressed = {"FIRE": {"space"}, "UP": {"↑"}, "RIGHT": {"→"}, "UPRIGHTFIRE": {"↑", "→", "space"}, "pickup": {"6"}}
    for name, held in pressed.items():
        assert keys.action(held) == names.index(name)
        assert drawn_keys(spec, names.index(name)) == ("", "".join(k for k in "↑←↓→" if k in held))
    assert keys.action(()) == keys.action({"→", "←"}) == 0
    assert keys.action({"→", "space"}) == 1 and keys.action({"↓", "→"}) == 3  # no action is both: a part of it
    assert keys.table()[(ord("6"),)] == 6 and keys.table()[(ord(" "),)] == 1


def test_actions_without_names_have_numbers():
    keys = keyboard(ActionSpec("discrete", (12,)))
    assert [keys.action({str(n)}) for n in range(10)] == list(range(10))
    assert len(keys.table()) == 9


def test_components_have_keys_of_their_own():
    keys = keyboard(ActionSpec("multi_discrete", (3, 2)))
    held = [(), {"1"}, {"2"}, {"3"}, {"2", "3"}, {"1", "2"}]
    assert [keys.action(h).tolist() for h in held] == [[0, 0], [1, 0], [2, 0], [0, 1], [2, 1], [0, 0]]
    assert len(keys.table()) == 5
    keys = keyboard(ActionSpec("box", low=(-1.0, 0.0, 0.0), high=(1.0, 1.0, 1.0)))  # steering, gas and brake
    held = [(), {"←"}, {"→", "↑"}, {"↓"}, {"←", "→"}]
    assert [keys.action(h).tolist() for h in held] == [[0, 0, 0], [-1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("kind", SPACES)
def test_every_chord_is_an_action_of_the_space(kind):
    space, table = action_space(SPACES[kind]), keyboard(SPACES[kind]).table()
    assert table and all(
        space.contains(SPACES[kind].check(action)) or kind == "multi_binary" for action in table.values()
    )
    assert len({plain(action) for action in table.values()}) == len(table)


# ---- play ---------------------------------------------------------------------------------------------------------------


def shown(session: Session, until: Callable[[Frame], bool]) -> list[Frame]:
    """Takes frames until `until` is true of one."""
    frames: list[Frame] = []
    end = time.monotonic() + 60
    while not frames or not until(frames[-1]):
        assert time.monotonic() < end, frames
        frame = session.take()
        if frame is not None:
            frames.append(frame)
        time.sleep(session.wait_time())
    return frames


@pytest.mark.parametrize("kind", SPACES)
def test_a_person_plays_any_world_and_its_replay_is_the_same(models, kind, tmp_path):
    key = {"discrete": "→", "multi_discrete": "2", "multi_binary": "3", "box": "→"}[kind]
    action = {"discrete": 2, "multi_discrete": (2, 0), "multi_binary": (0, 0, 1), "box": (1.0, 0.0)}[kind]
    with Dreamer(models[kind]) as dreamer:
        dreamer.warm_up()
        session = dreamer.open(Start(seed=1))
        session.record(tmp_path / "film.mp4")
        session.hold({key})
        frames = shown(session, lambda frame: frame.block == 2 and frame.index == 1)
        stats = session.stats()
        session.close()
    assert frames[0].action.index == plain(SPACES[kind].noop) and frames[-1].action.index == action
    assert stats.action.keys is None and stats.action.arrows == ("→" if key == "→" else "") and stats.score is not None
    replay = read_replay(tmp_path / "film.replay")
    again = list(replay_frames(models[kind], replay))
    assert len(again) == len(frames)
    assert all((a.picture == b.picture).all() and a.action == b.action for a, b in zip(frames, again))


def test_play_stops_where_the_episode_ends(models):
    model = models["discrete"]
    ending = with_heads(model, sure_heads(model.config, 2, 4.0))
    with Dreamer(ending) as dreamer:
        session = dreamer.open(Start(seed=1))
        with pytest.raises(ValueError, match="without text"):
            session.set_event("rain begins")
        shown(session, lambda frame: frame.block == 0 and frame.index == 1)
        time.sleep(0.3)
        assert session.take() is None
        assert session.over == "the episode ended" and session.stats().score == 1.0
        session.restart()
        assert shown(session, lambda frame: frame.block == 0)[0].block == -1


def test_a_window_has_the_models_keys(models, monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from yume_gym.play.controls import Controls
    from yume_gym.play.window import PlayWindow

    controls = Controls(pygame, keyboard(SPACES["discrete"]).keys)
    for code in (pygame.K_SPACE, pygame.K_RIGHT, pygame.K_w):
        assert controls.handle(pygame.event.Event(pygame.KEYDOWN, key=code)) is None
    assert controls.held == {"space", "→"}
    controls.handle(pygame.event.Event(pygame.JOYHATMOTION, instance_id=0, hat=0, value=(-1, 0)))
    assert controls.held == {"space", "→", "←"}
    with Dreamer(models["discrete"]) as dreamer:
        window = PlayWindow(dreamer.open(Start(seed=1)))
        window.run(seconds=1.5)
    assert window.picture is not None


def test_what_other_worlds_cannot_be_shown_with_is_explained(models):
    pytest.importorskip("starlette")
    from yume_gym.play.web import check_page

    with pytest.raises(ValueError, match="without --web"):
        check_page(models["box"].config)
    with pytest.raises(ValueError, match="leave out the twin"):
        prepare(models["box"], Start(seed=0, twin=True))

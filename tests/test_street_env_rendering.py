"""YumeStreet-v0: rendering, videos, windows, and the keyboard of Gymnasium's play."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from street_env import FORWARD, env_fixture  # noqa: F401  (fixtures, too)

import yume_gym  # noqa: F401
from world_model.actions import Action
from world_model.presets import get_preset
from yume_gym.recording import RecordEveryFrame
from yume_gym.street.env import YumeStreetEnv


def test_list_rendering_hands_out_every_frame_once():
    env = YumeStreetEnv(preset="debug", render_mode="rgb_array_list")
    first, _ = env.reset(seed=0)
    blocks = [env.step(FORWARD)[4]["frames"] for _ in range(3)]
    shown = env.render()
    assert np.array_equal(np.stack(shown), np.concatenate([first[None], *blocks]))
    assert env.render() == []
    env.step(0)
    env.reset()
    assert len(env.render()) == 1


def test_recorded_video_has_every_frame(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.make("YumeStreet-v0", preset="debug", render_mode="rgb_array_list")
    with pytest.raises(ValueError, match="rgb_array_list"):
        RecordEveryFrame(gym.make("YumeStreet-v0", preset="debug", render_mode="rgb_array"), str(tmp_path / "no"))
    recorder = RecordEveryFrame(env, str(tmp_path / "video"), episode_trigger=lambda episode: True)
    recorder.reset(seed=0)
    for _ in range(3):
        recorder.step(FORWARD)
    config = get_preset("debug")
    assert len(recorder.recorded_frames) == 1 + 3 * config.frames_per_block
    assert recorder.frames_per_sec == config.fps
    assert len(recorder.render()) == 1 + 3 * config.frames_per_block
    recorder.close()
    assert len(list((tmp_path / "video").glob("*.mp4"))) == 1


def test_human_rendering_needs_no_display(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    env = YumeStreetEnv(preset="debug", render_mode="human")
    env.reset(seed=0)
    env.step(FORWARD)
    assert env.render() is None
    env.close()
    env.close()


def test_keyboard_table_serves_gymnasium_play(env):
    pygame = pytest.importorskip("pygame")
    table = env.get_keys_to_action()
    assert table[(ord("w"),)] == FORWARD
    assert table[tuple(sorted((pygame.K_w, pygame.K_a, pygame.K_RIGHT)))] == Action.from_keys("W+A", "→").index
    assert table[tuple(sorted((pygame.K_UP, pygame.K_LEFT)))] == Action.from_keys("", "↑←").index
    assert table[tuple(sorted((pygame.K_s, pygame.K_DOWN)))] == Action.from_keys("S", "↓").index
    assert table[tuple(sorted((pygame.K_w, pygame.K_s)))] == 0
    assert set(table.values()) == set(range(81))
    assert len(env.get_action_meanings()) == len(set(env.get_action_meanings())) == 81
    assert env.get_action_meanings()[0] == "noop"

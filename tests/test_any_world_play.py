"""Play in models of recorded environments: the keys of their action spaces, replays and windows."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from recorded_worlds import SPACES, folders_fixture, models_fixture, sure_heads, with_heads  # noqa: F401  (fixtures, too)

from world_model.action_spaces import ActionSpec
from yume_gym.keyboard import action_space, drawn_keys, keyboard, plain
from yume_gym.play.dreamer import Dreamer, replay_frames
from yume_gym.play.replay import read_replay
from yume_gym.play.session import Session
from yume_gym.play.start import Start, prepare
from yume_gym.play.world import Frame

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

"""Recording environments: every kind of actions and of pictures, frame skip, words, workers, and going on after a stop."""

from __future__ import annotations

import json

import numpy as np
import pygame
import pytest
from gymnasium.utils.env_checker import check_env
from tiny_worlds import ACTIONS

from train import record as command
from train.recordings import Recording, RecordingError, open_episodes
from train.recordings.environment import PictureSettings, RecordedEnv, RecordSettings, TextSettings
from train.recordings.pictures import resized
from train.recordings.recorder import EpisodeRecorder, record
from world_model.action_spaces import ActionSpec
from yume_gym.window import Window


def settings(
    policy: str = "random", size: tuple[int, int] = (32, 48), resize: str = "stretch", **changes
) -> RecordSettings:
    kwargs = json.dumps({name: changes.pop(name) for name in ("actions", "pictures", "length") if name in changes})
    pictures = PictureSettings(size, resize)
    return RecordSettings("Tiny-v0", kwargs, ("tiny_worlds",), policy, pictures=pictures, **changes)


def assert_same(one, other) -> None:
    assert len(one) == len(other) and one.recording == other.recording and one.texts == other.texts
    for a, b in zip(one, other):
        for name in ("frames", "action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary", "box"])
@pytest.mark.parametrize("policy", ["random", "sticky"])
def test_all_kinds_of_actions_are_recorded(tmp_path, kind, policy):
    record(settings(policy, actions=kind), tmp_path, episodes=3)
    files = open_episodes(tmp_path)
    spec, space = files.recording.action, ACTIONS[kind]
    assert spec.kind == kind and spec.shape == (() if kind == "discrete" else (int(np.prod(space.shape)),))
    assert files.recording.fps == 20 and files.recording.provenance.resize == "none"
    for episode in files:
        steps = len(episode)
        assert (
            6 <= steps < 10 and episode.terminated.tolist() == [0] * (steps - 1) + [1] and not episode.truncated.any()
        )
        dots = [int(np.nonzero(frame[0, :, 0] == 255)[0][0]) for frame in episode.frames]
        if kind == "discrete":  # stored from 0 on, given from 5 on
            assert (np.diff(dots) % 48 == episode.action + 5).all()
    assert len(np.unique(files.action, axis=0)) > 1


@pytest.mark.parametrize("pictures", ["rgb", "gray", "flat", "dict", "render"])
def test_pictures_come_from_wherever_they_are(tmp_path, pictures):
    recorder = EpisodeRecorder(settings(pictures=pictures))
    frames = recorder.record(0).frames
    assert frames.dtype == np.uint8 and frames.shape[1:] == (32, 48, 3)
    assert (frames.min(axis=(1, 2, 3)) == np.arange(len(frames))).all()  # one picture for each step, in order
    source = {"dict": "screen", "render": "render"}.get(pictures, "observation")
    assert recorder.recording.provenance.source["pictures"] == source and source in " ".join(recorder.notes)


def test_pictures_can_be_chosen():
    depth, small = PictureSettings((32, 48), source="depth"), PictureSettings(source="small")
    chosen = RecordSettings("Tiny-v0", '{"pictures": "dict"}', ("tiny_worlds",), pictures=depth)
    assert EpisodeRecorder(chosen).record(0).frames[4].max() == 127
    with pytest.raises(
        RecordingError, match=r"'small' of this environment is not a picture.*\['render', 'depth', 'screen'\]"
    ):
        EpisodeRecorder(RecordSettings("Tiny-v0", '{"pictures": "dict"}', ("tiny_worlds",), pictures=small))


def test_frame_skip_sums_rewards_and_takes_the_last_picture(tmp_path):
    record(settings(frame_skip=4, length=9), tmp_path, episodes=4)
    files = open_episodes(tmp_path)
    assert files.recording.provenance.frame_skip == 4 and files.recording.fps == 5
    for episode in files:
        assert (episode.reward[:-1] == 4).all()
        total = int(episode.reward.sum())
        assert 9 <= total <= 12 and episode.frames[-1].min() == total and episode.frames[1].min() == 4


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_way_of_resizing_is_told(tmp_path, resize, capsys):
    record(settings(size=(16, 16), resize=resize), tmp_path, episodes=1)
    files = open_episodes(tmp_path)
    assert (files.recording.provenance.resize, files.recording.provenance.original_size) == (resize, (32, 48))
    said = {"stretch": "stretched", "crop": "cropped in the middle", "pad": "with black edges"}[resize]
    assert f"32x48 from the observation, {said} to 16x16" in capsys.readouterr().err
    assert files.frames(0).shape[1:] == (16, 16, 3)


def test_resizing_keeps_brightness_and_shape():
    picture = np.full((32, 48, 3), 90, np.uint8)
    assert (resized(picture, (16, 16), "stretch") == 90).all() and (resized(picture, (16, 16), "crop") == 90).all()
    padded = resized(picture, (64, 64), "pad")
    assert (padded[:10] == 0).all() and (padded[12:52] == 90).all() and padded.shape == (64, 64, 3)


def test_texts_are_kept_where_they_change(tmp_path):
    record(settings(texts=TextSettings("a world of one dot", "task")), tmp_path, episodes=1)
    files = open_episodes(tmp_path)
    assert files.captions == ["a world of one dot"] and files.texts == [((0, "find the dot"), (3, None))]
    with pytest.raises(RecordingError, match="--text-key number: expected a text"):
        EpisodeRecorder(settings(texts=TextSettings(key="number"))).record(0)


def test_the_number_of_workers_does_not_matter(tmp_path):
    record(settings("sticky"), tmp_path / "one", steps=40)
    record(settings("sticky"), tmp_path / "two", steps=40, workers=2)
    one = open_episodes(tmp_path / "one")
    assert len(one.action) >= 40 and len(one.action) - one.lengths[-1] < 40
    assert_same(one, open_episodes(tmp_path / "two"))


def test_a_recording_goes_on_where_it_stopped(tmp_path):
    record(settings(), tmp_path / "whole", episodes=5)
    record(settings(), tmp_path / "parts", episodes=2)
    record(settings(), tmp_path / "parts", episodes=5)
    assert record(settings(), tmp_path / "parts", episodes=5).episodes == 5
    assert_same(open_episodes(tmp_path / "whole"), open_episodes(tmp_path / "parts"))
    with pytest.raises(RecordingError, match="recorded with seed 0, asked for is 1"):
        record(settings(seed=1), tmp_path / "parts", episodes=6)


def test_an_interrupt_keeps_whole_episodes(tmp_path, monkeypatch):
    original = EpisodeRecorder.record

    def stopped_at_three(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(EpisodeRecorder, "record", stopped_at_three)
    arguments = ["--env", "Tiny-v0", "--import", "tiny_worlds", "--out", str(tmp_path), "--steps", "1000"]
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 130 and len(open_episodes(tmp_path)) == 3


def test_episodes_are_cut_after_so_many_steps():
    episode = EpisodeRecorder(settings(length=50, max_episode_steps=7)).record(0)
    assert len(episode) == 7 and episode.truncated.tolist() == [0] * 6 + [1] and not episode.terminated.any()


def test_policies_of_other_modules_and_of_stable_baselines(tmp_path):
    assert set(EpisodeRecorder(settings("tiny_worlds:always_last")).record(0).action) == {2}
    with pytest.raises(RecordingError, match="chose 99, which is not an action"):
        EpisodeRecorder(settings("tiny_worlds:mistaken")).record(0)
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium

    path = tmp_path / "policy.zip"
    sb3.PPO("MlpPolicy", gymnasium.make("CartPole-v1"), n_steps=8, batch_size=8, device="cpu").save(path)
    cart = RecordSettings("CartPole-v1", policy=str(path), max_episode_steps=5, pictures=PictureSettings((40, 64)))
    first, again = EpisodeRecorder(cart).record(1), EpisodeRecorder(cart).record(1)
    np.testing.assert_array_equal(first.action, again.action)
    assert first.frames.shape == (len(first) + 1, 40, 64, 3) and first.frames.std() > 0


def test_slow_noise_is_for_boxes():
    action = EpisodeRecorder(settings("smooth", actions="box", length=40)).record(0).action
    assert abs(np.diff(action[:, 0])).mean() < 0.5 * action[:, 0].std() + 0.2
    with pytest.raises(RecordingError, match="smooth is for actions in a Box"):
        EpisodeRecorder(settings("smooth")).record(0)


WRONG = {
    "unknown environment": (["--env", "NoSuchWorld-v0"], "cannot make NoSuchWorld-v0"),
    "unknown module": (["--import", "no_such_module"], "cannot import no_such_module"),
    "no pictures": (["--env-kwargs", '{"pictures": "none"}'], "no pictures: render"),
    "infinite bounds": (["--env-kwargs", '{"actions": "infinite"}'], "infinite bounds: wrap"),
    "tuple of actions": (["--env-kwargs", '{"actions": "tuple"}'], "cannot be recorded: use a wrapper"),
    "bad kwargs": (["--env-kwargs", '{"colour": 1}'], "cannot make Tiny-v0"),
    "kwargs not JSON": (["--env-kwargs", "{"], "--env-kwargs is not JSON"),
    "kwargs a list": (["--env-kwargs", "[1]"], "must be a JSON object"),
    "odd size": (["--size", "60x64"], "multiples of 8, got 60x64"),
    "frame skip": (["--frame-skip", "0"], "--frame-skip must be 1 or more"),
    "rate": (["--fps", "0"], "--fps must be above 0"),
    "unknown policy": (["--policy", "clever"], "unknown policy 'clever'"),
    "probability": (["--policy", "sticky:2"], "a probability from 0 to below 1, got '2'"),
    "no zip": (["--policy", "nowhere.zip"], "no policy at 'nowhere.zip'"),
    "no function": (["--policy", "tiny_worlds:nothing"], "no policy tiny_worlds:nothing"),
    "no end": (["--episodes", "0"], "give either --steps or --episodes"),
}


@pytest.mark.parametrize("how", WRONG)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, how):
    arguments, message = WRONG[how]
    length = [] if "--episodes" in arguments else ["--steps", "10"]
    with pytest.raises(SystemExit) as stopped:
        command.main(
            ["--env", "Tiny-v0", "--import", "tiny_worlds", "--out", str(tmp_path / "out"), *length, *arguments]
        )
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and message in told and "Traceback" not in told


def test_a_file_that_is_no_policy_is_refused(tmp_path):
    pytest.importorskip("stable_baselines3")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(RecordingError, match="not a policy of Stable-Baselines3"):
        EpisodeRecorder(settings(str(tmp_path / "broken.zip")))


def test_atari_is_recorded_frame_by_frame():
    pytest.importorskip("ale_py")
    recorder = EpisodeRecorder(RecordSettings("ALE/Breakout-v5", frame_skip=4, max_episode_steps=6))
    first, again = recorder.record(0), recorder.record(0)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert recorder.recording.fps == 15 and recorder.recording.provenance.source["env_kwargs"]["frameskip"] == 1
    assert recorder.recording.action.meanings == ("NOOP", "FIRE", "RIGHT", "LEFT") and first.frames.shape == (
        7,
        64,
        64,
        3,
    )


def test_doom_is_recorded_from_its_screen():
    pytest.importorskip("vizdoom")
    recorder = EpisodeRecorder(RecordSettings("VizdoomTakeCover-v1", frame_skip=4, policy="random"))
    first, _, again = recorder.record(0), recorder.record(1), recorder.record(0)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert recorder.recording.action.meanings == ("NONE", "MOVE_RIGHT", "MOVE_LEFT")
    assert first.terminated[-1] and first.frames[-1].any()  # no black picture at the end


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_minari_reads_and_gives_back_a_recording(tmp_path, monkeypatch, kind):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    record(settings(actions=kind), tmp_path / "ours", episodes=3)
    command.main(["--to-minari", "test/dot-v0", "--out", str(tmp_path / "ours")])
    command.main(["--minari", "test/dot-v0", "--size", "32x48", "--fps", "20", "--out", str(tmp_path / "theirs")])
    ours, theirs = open_episodes(tmp_path / "ours"), open_episodes(tmp_path / "theirs")
    assert (
        theirs.recording.fps == 20
        and theirs.recording.provenance.resize == "none"
        and theirs.lengths.tolist() == ours.lengths.tolist()
    )
    for a, b in zip(ours, theirs):
        for name in ("frames", "action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_mistakes_are_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    record(settings(), tmp_path / "ours", episodes=1)
    command.main(["--to-minari", "test/dot-v0", "--out", str(tmp_path / "ours")])
    with pytest.raises(SystemExit):
        command.main(["--to-minari", "test/dot-v0", "--out", str(tmp_path / "ours")])
    assert "cannot make the Minari dataset 'test/dot-v0'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--minari", "not a name", "--out", str(tmp_path / "theirs")])
    assert "cannot load the Minari dataset 'not a name'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_the_environment_behind_a_recording_replays_it(tmp_path, kind):
    """From the folder alone: the same pictures, rewards and ends; its spaces are those of a model of the recording."""
    record(settings(actions=kind, frame_skip=2, size=(16, 24)), tmp_path, episodes=2)
    env = RecordedEnv.of(tmp_path)
    check_env(env, skip_render_check=True)
    for index, episode in enumerate(open_episodes(tmp_path)):
        env_seed = EpisodeRecorder(env.settings).record(index).info["env_seed"]
        shown, _ = env.reset(seed=env_seed)
        np.testing.assert_array_equal(shown, episode.frames[0])
        for step, action in enumerate(episode.action):
            assert env.action_space.contains(int(action) if kind == "discrete" else action)
            shown, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(shown, episode.frames[step + 1])
            found = (reward, terminated, truncated)
            assert found == (episode.reward[step], episode.terminated[step], episode.truncated[step])


def test_a_person_plays_by_keys_until_escape(tmp_path, monkeypatch):
    """Keys as `yume_gym.keyboard` has them: 2 is the last of three actions without names. Whole episodes are kept."""
    held: list[frozenset[str] | None] = [frozenset({"2"}), frozenset(), frozenset({"1"})] * 6 + [None]
    monkeypatch.setattr(Window, "held", lambda _: held.pop(0))
    with pytest.raises(KeyboardInterrupt):
        record(settings("keyboard:1000"), tmp_path, episodes=50)
    actions = open_episodes(tmp_path).action
    assert len(actions) >= 6 and actions.tolist() == ([2, 0, 1] * 6)[: len(actions)]


def test_the_window_of_a_recording_says_which_keys_are_down():
    window = Window("keys", 32, 48, 1000.0)
    assert window.held() == frozenset()  # not open yet
    window.show(np.zeros((1, 32, 48, 3), np.uint8))
    assert window.held() == frozenset()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.held() is None
    window.close()


@pytest.mark.parametrize(
    ("policy", "workers", "match"),
    [
        ("keyboard:0", 1, "above 0, got '0'"),
        ("keyboard:fast", 1, "got 'fast'"),
        ("keyboard", 2, "leave out --workers 2"),
    ],
)
def test_a_person_needs_a_rate_and_one_environment(tmp_path, policy, workers, match):
    with pytest.raises(RecordingError, match=match):
        record(settings(policy), tmp_path, episodes=1, workers=workers)


def test_a_recording_of_something_else_has_no_environment(tmp_path):
    with pytest.raises(RecordingError, match=r"does not say how to make its environment: record it with train\.record"):
        RecordSettings.of(Recording("elsewhere", 16, 24, 5.0, ActionSpec("discrete", (2,))))

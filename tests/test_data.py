"""Walks, shards and latents: what is on disk is what was walked, whatever was interrupted in between."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import with_video
from safetensors import safe_open
from safetensors.torch import save_file

from train.data import commands as data
from train.data import latents
from train.data.shards import (
    LAYOUT,
    Header,
    Shard,
    ShardError,
    find_shards,
    is_whole,
    latents_path,
    shard_path,
    write_shard,
    write_shards,
)
from train.street.walks import ATMOSPHERES, EVENT_WEIGHTS, LATER_EVENTS, StreetRecipe, WalkPlan, plan_walk, render_walk
from world_model.actions import Action
from world_model.camera import commanded_motion
from world_model.presets import get_preset
from world_model.vae import build_vae
from yume_gym.street.events import EVENTS
from yume_gym.street.simulator import EVENTS as DRAWN_EVENTS
from yume_gym.street.simulator import StreetSimulator

DEBUG = get_preset("debug")
BLOCKS = 8
RECIPE = StreetRecipe(
    height=DEBUG.height,
    width=DEBUG.width,
    fps=DEBUG.fps,
    frames_per_block=DEBUG.frames_per_block,
    camera=DEBUG.camera,
    blocks_per_walk=BLOCKS,
    seed=5,
    town_blocks=2,
    town_seed=0,
)
HEADER = Header("debug", DEBUG.height, DEBUG.width, DEBUG.fps, DEBUG.frames_per_block, BLOCKS, 5, {"world": "street"})


@pytest.fixture(scope="module")
def walks() -> list:
    return [render_walk(RECIPE, index) for index in range(5)]


def same(a, b) -> bool:
    return a.info == b.info and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in LAYOUT)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------- walks


def test_a_walk_depends_on_seed_and_number_alone(walks: list) -> None:
    assert same(render_walk(RECIPE, 3), walks[3])
    assert not np.array_equal(walks[2].frames, walks[3].frames)
    other = dataclasses.replace(RECIPE, seed=6)
    assert not np.array_equal(render_walk(other, 3).frames, walks[3].frames)


def test_angles_and_positions_are_those_of_the_commanded_motion(walks: list) -> None:
    step = RECIPE.frames_per_block
    for walk in walks:
        for block in range(1, BLOCKS):
            last, now = block * step - 1, slice(block * step, (block + 1) * step)
            action = Action.from_index(int(walk.action[block]))
            yaw, pitch, moves = commanded_motion(
                action, float(walk.yaw[last]), float(walk.pitch[last]), step, RECIPE.fps, RECIPE.camera
            )
            np.testing.assert_allclose(walk.yaw[now], yaw, atol=1e-5)
            np.testing.assert_allclose(walk.pitch[now], pitch, atol=1e-5)
            way = walk.position[now] - walk.position[last]
            if not walk.blocked[block]:
                np.testing.assert_allclose(way, moves, atol=1e-4)
            assert np.all(np.hypot(*way.T) <= np.hypot(*moves.T) + 1e-4)


def test_frames_show_what_the_simulator_shows_there(walks: list) -> None:
    """The last frame of a walk in steady light, drawn again by a fresh simulator from position, angles and clock."""
    walk = next(walk for walk in walks if not walk.info.event)
    street = StreetSimulator(
        height=RECIPE.height, width=RECIPE.width, fps=RECIPE.fps, frames_per_block=RECIPE.frames_per_block
    )
    index = next(i for i, other in enumerate(walks) if other is walk)
    _, start, _, _ = np.random.default_rng([RECIPE.seed, index]).spawn(4)
    street.reset(start, light=walk.info.light, weather=walk.info.weather)
    x, z = (float(value) for value in walk.position[-1])
    state = street.get_state()
    street.set_state(
        dataclasses.replace(
            state, frame=state.frame + len(walk.frames), x=x, z=z, yaw=float(walk.yaw[-1]), pitch=float(walk.pitch[-1])
        )
    )
    difference = np.abs(street.render().astype(int) - walk.frames[-1])
    assert difference.mean() < 0.5


def test_the_mixture_of_light_weather_and_events() -> None:
    plans = [plan_walk(np.random.default_rng([1, k]), 32) for k in range(4000)]
    seen = Counter((plan.light, plan.weather) for plan in plans)
    for light, weather, share in ATMOSPHERES:
        assert seen[light, weather] / len(plans) == pytest.approx(share, abs=0.03)
    eventful = [plan for plan in plans if plan.events]
    assert len(eventful) / len(plans) == pytest.approx(0.7, abs=0.03)
    assert {kind for plan in eventful for kind in kinds_of(plan)} == EVENT_WEIGHTS.keys()
    for plan in eventful:
        # what is there cannot come; day alone is no weather: the sun comes out of rain by day
        for kind in kinds_of(plan):
            assert EVENT_WEIGHTS[kind][1] not in {plan.weather, plan.light} - {"day"}
    assert not any("sun" in kinds_of(plan) for plan in eventful if (plan.light, plan.weather) == ("day", "clear"))
    assert any("sun" in kinds_of(plan) for plan in eventful if (plan.light, plan.weather) == ("day", "snow"))
    assert sum(share for *_, share in ATMOSPHERES) == pytest.approx(1.0)


def kinds_of(plan: WalkPlan) -> list[str]:
    return [kind for kind, _, _ in plan.events]


def test_events_of_a_walk_come_one_after_another() -> None:
    """Each lasts 4 to 18 blocks, 0 to 10 blocks after the one before or the first block, and is another one; until the end."""
    eventful = [plan for plan in (plan_walk(np.random.default_rng([2, k]), 32) for k in range(1500)) if plan.events]
    firsts, lengths, gaps = (Counter[int]() for _ in range(3))
    for plan in eventful:
        firsts[plan.events[0][1]] += 1
        lengths.update(stop - first for _, first, stop in plan.events)
        for (kind, _, stop), (other, first, _) in pairwise(plan.events):
            gaps[first - stop] += 1
            assert kind != other
        assert plan.events[-1][1] < 32 <= plan.events[-1][2] + 10
    assert firsts.keys() == set(range(1, 12)) and lengths.keys() == set(range(4, 19)) and gaps.keys() == set(range(11))
    assert max(firsts.values()) < 1.6 * min(firsts.values()) and max(lengths.values()) < 1.6 * min(lengths.values())
    assert max(len(plan.events) for plan in eventful) > 3
    assert any(kind == again for plan in eventful for kind, again in zip(kinds_of(plan), kinds_of(plan)[2:]))
    assert not plan_walk(np.random.default_rng([2, 0]), 1).events  # the first block has none


def test_every_event_that_can_be_drawn_is_used() -> None:
    assert not EVENT_WEIGHTS.keys() & set(LATER_EVENTS)
    assert EVENT_WEIGHTS.keys() | set(LATER_EVENTS) == EVENTS.keys() == set(DRAWN_EVENTS)


def test_walks_are_what_they_were_before_later_kinds() -> None:
    """Drawn from a number alone: these have been trained on, and measured."""
    known = {
        8: ("golden", "rain", (("fireworks", 6, 10), ("snow", 17, 23), ("fog", 27, 40))),
        13: ("day", "clear", (("heavy_rain", 6, 12), ("ghost", 17, 28))),
        28: ("overcast", "clear", (("fire", 1, 13), ("ghost", 15, 20), ("snow", 28, 45))),
    }
    for number, plan in known.items():
        found = plan_walk(np.random.default_rng([7, number]), 32)
        assert (found.light, found.weather, found.events) == plan


def planned(index: int, blocks: int) -> WalkPlan:
    return plan_walk(np.random.default_rng([RECIPE.seed, index]).spawn(4)[0], blocks)


def test_an_event_shows_from_its_first_block_until_it_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk on which night falls, compared with the same walk without the event."""
    recipe = dataclasses.replace(RECIPE, blocks_per_walk=26)
    plans = ((k, planned(k, 26)) for k in range(10_000))
    index = next(
        k for k, plan in plans if plan.light == "day" and kinds_of(plan) == ["night"] and plan.events[0][2] < 21
    )
    walk = render_walk(recipe, index)
    (first, text, kind), (stop, ended, none) = walk.info.event
    assert kind == "night" and text in EVENTS["night"].phrases and ended is none is None
    assert [walk.info.event_at(block) for block in (first - 1, first, stop - 1, stop)] == [None, text, text, None]

    monkeypatch.setattr("train.street.walks.EVENT_SHARE", 0.0)
    plain = render_walk(recipe, index)
    assert plain.info == dataclasses.replace(walk.info, event=())
    np.testing.assert_array_equal(plain.position, walk.position)
    change = (walk.frames.astype(float) - plain.frames).reshape(26, -1).mean(axis=1)
    assert not change[:first].any()
    assert -40 < change[first] < -1 and np.all(change[first + 2 : stop] < -20)  # a second to fade in, then dark
    assert not change[stop + 3 :].any()


def test_an_event_that_follows_at_once_takes_the_place_of_the_one_before() -> None:
    """No block between them says that nothing happens; after a gap there is one that does."""
    plans = ((k, planned(k, 10)) for k in range(10_000))
    walks = {}
    for k, plan in plans:
        if len(plan.events) == 2 and (gap := plan.events[1][1] - plan.events[0][2]) in (0, 2):
            walks.setdefault(gap, (k, plan))
        if len(walks) == 2:
            break
    assert len(walks) == 2
    for gap, (k, plan) in walks.items():
        info = render_walk(dataclasses.replace(RECIPE, blocks_per_walk=10), k).info
        (kind, first, stop), (other, second, end) = plan.events
        told = {block: text for block, text, _ in info.event if text is not None}
        assert told.keys() == {first, second}
        assert told[first] in EVENTS[kind].phrases and told[second] in EVENTS[other].phrases
        expected = [None] * 10
        expected[first:stop] = [told[first]] * (stop - first)
        expected[second:end] = [told[second]] * (min(end, 10) - second)
        assert [info.event_at(block) for block in range(10)] == expected
        ends = {block for block, text, kind_ in info.event if text is kind_ is None}
        assert ends == ({stop} if gap else set()) | ({end} if end < 10 else set())


# ---------------------------------------------------------------- shards


def test_shards_read_back_exactly(tmp_path: Path, walks: list) -> None:
    assert write_shards(tmp_path, HEADER, iter(walks), 2) == 5
    shards = [Shard(path) for path in find_shards(tmp_path)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    found = [shard.trajectory(index) for shard in shards for index in range(len(shard))]
    assert all(same(a, b) for a, b in zip(found, walks, strict=True))
    np.testing.assert_array_equal(shards[1].frames(1, 5, 9), walks[3].frames[5:9])
    assert shards[0].header == HEADER
    with pytest.raises(IndexError, match=r"0\.\.1"):
        shards[0].frames(2)


def test_the_layout_on_disk_is_the_documented_one(tmp_path: Path, walks: list) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(path, HEADER, walks)
    frames = BLOCKS * DEBUG.frames_per_block
    with safe_open(path, framework="np") as file:
        shapes = {name: (file.get_slice(name).get_dtype(), *file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "frames": ("U8", 5, frames, 32, 48, 3),
        "action": ("U8", 5, BLOCKS),
        "yaw": ("F32", 5, frames),
        "pitch": ("F32", 5, frames),
        "position": ("F32", 5, frames, 2),
        "blocked": ("U8", 5, BLOCKS),
    }
    info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (info["preset"], info["seed"]) == ("debug", 5)
    assert [walk["caption"] for walk in info["walks"]] == [walk.info.caption for walk in walks]
    assert not list(tmp_path.glob("*.unfinished"))


def test_arrays_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path: Path, walks: list) -> None:
    for change in ({"yaw": walks[0].yaw.astype(np.float64)}, {"action": walks[0].action[:-1]}):
        with pytest.raises(ShardError, match=next(iter(change))):
            write_shard(shard_path(tmp_path, 0), HEADER, [walks[1], dataclasses.replace(walks[0], **change)])
    assert not list(tmp_path.iterdir())


def damage(path: Path, how: str) -> None:
    info = path.with_suffix(".json")
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no tensors":
        path.unlink()
    elif how == "no json":
        info.unlink()
    elif how == "half a json":
        info.write_text(info.read_text(encoding="utf-8")[:200], encoding="utf-8")
    else:
        info.write_text(info.read_text(encoding="utf-8").replace('"height": 32', '"height": 40'), encoding="utf-8")


@pytest.mark.parametrize("how", ["truncated", "no tensors", "no json", "half a json", "other shape"])
def test_damaged_shards_are_told_apart(tmp_path: Path, walks: list, how: str) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(path, HEADER, walks)
    assert is_whole(path, HEADER, 5) and is_whole(path, HEADER, 4) and not is_whole(path, HEADER, 6)
    damage(path, how)
    assert not is_whole(path, HEADER, 5)
    with pytest.raises((ShardError, FileNotFoundError), match="shard_00000"):
        Shard(path)


def test_a_folder_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.data street render"):
        find_shards(tmp_path)


# ---------------------------------------------------------------- the commands


def command(*arguments: object) -> None:
    data.main(["debug", *map(str, arguments)])


def render_command(out: Path, walks: int = 5, **options: object) -> None:
    given = {"blocks-per-walk": 4, "walks-per-shard": 2, "seed": 5} | options
    command("render", "--out", out, "--walks", walks, *(f"--{name}={value}" for name, value in given.items()))


def test_render_resumes_to_the_same_files(tmp_path: Path) -> None:
    render_command(tmp_path / "a")
    whole = contents(tmp_path / "a")
    assert len(whole) == 6
    before = shard_path(tmp_path / "a", 0).stat().st_mtime_ns
    damage(shard_path(tmp_path / "a", 1), "truncated")
    damage(shard_path(tmp_path / "a", 2), "no json")
    render_command(tmp_path / "a")
    assert contents(tmp_path / "a") == whole
    assert shard_path(tmp_path / "a", 0).stat().st_mtime_ns == before


def test_workers_and_shard_size_change_nothing(tmp_path: Path) -> None:
    render_command(tmp_path / "a", 3)
    render_command(tmp_path / "b", 3, **{"workers": 2, "walks-per-shard": 3})
    one = [shard.trajectory(k) for shard in map(Shard, find_shards(tmp_path / "a")) for k in range(len(shard))]
    other = [shard.trajectory(k) for shard in map(Shard, find_shards(tmp_path / "b")) for k in range(len(shard))]
    assert len(one) == 3 and all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("change", [{"seed": 6}, {"town-seed": 1}, {"blocks-per-walk": 5}, {"walks-per-shard": 3}])
def test_other_settings_do_not_mix_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, int]
) -> None:
    render_command(tmp_path, 1)
    with pytest.raises(SystemExit):
        render_command(tmp_path, 1, **change)
    assert "use another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "render", "--out", "x", "--walks", "1"], "known presets are"),
        (["debug", "render", "--out", "x", "--walks", "0"], "--walks must be 1 or more"),
        (["debug", "encode", "--data", "/nowhere", "--vae", "/nowhere"], "no autoencoder"),
        (["debug", "sekai-write", "--data", "/nowhere", "--out", "x"], "no shards in"),
        (["debug", "sekai-read", "--data", "/nowhere", "--out", "x"], "Keys_W_Mouse_Left"),
    ],
)
def test_bad_commands_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        data.main(arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_shards_to_clips_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks come back with their action and place; videos are lossy, so pictures are only near."""
    render_command(tmp_path / "shards", 2)
    command("sekai-write", "--data", tmp_path / "shards", "--out", tmp_path / "clips")
    (tmp_path / "clips" / "Keys_W_Mouse_Up").mkdir(exist_ok=True)
    (tmp_path / "clips" / "Keys_W_Mouse_Up" / "broken.mp4").write_bytes(b"no video")
    command("sekai-read", "--data", tmp_path / "clips", "--out", tmp_path / "back", "--blocks-per-walk", 1)
    printed = capsys.readouterr()
    assert "8 walks from" in printed.out and "1 skipped" in printed.out
    assert "broken.mp4: no readable video" in printed.err
    step = DEBUG.frames_per_block
    walked = [shard.trajectory(k) for shard in map(Shard, find_shards(tmp_path / "shards")) for k in range(len(shard))]
    blocks = [(walk, n, slice(n * step, (n + 1) * step)) for walk in walked for n in range(4)]
    found = [shard.trajectory(k) for shard in map(Shard, find_shards(tmp_path / "back")) for k in range(len(shard))]
    assert len(found) == 8
    for walk in found:
        apart = [
            np.abs(other.position[part] - walk.position).max() + abs(other.pitch[part][0] - walk.pitch[0])
            for other, _, part in blocks
        ]
        other, number, part = blocks[int(np.argmin(apart))]
        assert min(apart) < 1e-3
        assert walk.action[0] == other.action[number] and walk.info.event_at(0) == other.info.event_at(number)
        assert walk.info.caption == other.info.caption
        assert np.abs(other.frames[part].astype(int) - walk.frames).mean() < 3
    with pytest.raises(SystemExit):
        command("sekai-read", "--data", tmp_path / "clips", "--out", tmp_path / "back", "--blocks-per-walk", 1)


# ---------------------------------------------------------------- latents


@pytest.fixture
def autoencoder(tmp_path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    vae = build_vae(DEBUG.vae).eval()
    (tmp_path / "vae").mkdir()
    save_file(vae.state_dict(), tmp_path / "vae" / latents.WEIGHTS)
    return vae


def test_latents_are_the_autoencoders(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    path = shard_path(tmp_path / "data", 0)
    write_shard(path, HEADER, walks[:2])
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae", device="cpu") == 1
    with safe_open(latents_path(path), framework="pt") as file:
        assert set(file.keys()) == {"latent"}
        found = file.get_tensor("latent")
    channels, (rows, columns), step = DEBUG.vae.latent_channels, DEBUG.latent_size, DEBUG.block_latents
    assert found.shape == (2, channels, BLOCKS * step, rows, columns) and found.dtype == torch.float16
    block = torch.from_numpy(walks[1].frames[12:16].copy()).permute(3, 0, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        alone = autoencoder.encode(block[None])[0]
    start = 3 * step
    torch.testing.assert_close(found[1][:, start : start + step].float(), alone, atol=5e-3, rtol=5e-3)


def test_the_warped_frame_of_a_block_is_the_frame_before_it(walks: list, autoencoder: torch.nn.Module) -> None:
    """With a warp that only repeats the picture it is given, the prior must be the still frame's latents."""
    walk = walks[0]
    video = torch.from_numpy(walk.frames.copy()).permute(3, 0, 1, 2).float() / 127.5 - 1
    told = {}

    def still(picture, yaw, pitch, yaws, pitches, moves):
        told.update(yaw=yaw, yaws=yaws, moves=moves)
        shown = picture[:, :, None].expand(-1, -1, DEBUG.frames_per_block, -1, -1)
        return autoencoder.encode(shown), torch.ones(len(picture), 1, DEBUG.block_latents, *DEBUG.latent_size)

    with torch.no_grad():
        guide, valid = latents.block_guides(DEBUG, still, video, walk)
        frame = video[:, 4 * DEBUG.frames_per_block - 1]
        expected = autoencoder.encode(frame[None, :, None].expand(-1, -1, DEBUG.frames_per_block, -1, -1))[0]
    torch.testing.assert_close(guide[3], expected, atol=1e-5, rtol=1e-5)
    assert len(guide) == len(valid) == BLOCKS - 1
    np.testing.assert_allclose(told["yaws"].flatten(), walk.yaw[DEBUG.frames_per_block :], atol=1e-6)
    assert told["yaw"][2] == walk.yaw[3 * DEBUG.frames_per_block - 1]


def test_encoding_again_only_where_something_changed(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    write_shards(tmp_path / "data", HEADER, walks[:2], 1)
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 2
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 0
    write_shard(shard_path(tmp_path / "data", 1), HEADER, walks[2:3])
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 1
    latents_path(shard_path(tmp_path / "data", 0)).write_bytes(b"")
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 1
    changed = {name: tensor + 1e-3 for name, tensor in autoencoder.state_dict().items()}
    save_file(changed, tmp_path / "vae" / latents.WEIGHTS)
    assert latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae") == 2


def test_encode_refuses_what_does_not_fit(tmp_path: Path, walks: list, autoencoder: torch.nn.Module) -> None:
    write_shard(shard_path(tmp_path / "data", 0), HEADER, walks[:1])
    with pytest.raises(ShardError, match="has height 32, 'wide' needs 64"):
        latents.encode(
            dataclasses.replace(with_video(DEBUG, height=64), name="wide"), tmp_path / "data", tmp_path / "vae"
        )
    (tmp_path / "vae" / latents.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="does not hold the autoencoder of 'debug'"):
        latents.encode(DEBUG, tmp_path / "data", tmp_path / "vae")

"""The commands of train.data: what was interrupted is resumed, and settings do not mix in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from street_shards import DEBUG, damage, same, walks_fixture  # noqa: F401  (fixtures, too)

from train.data import commands as data
from train.data.shards import (
    Shard,
    find_shards,
    shard_path,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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

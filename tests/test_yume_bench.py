"""Yume-Bench: estimators that see what is held, figures that say why they are missing, vbench in an environment of its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("cv2", reason="opencv is not installed: pip install 'yume-gym[video]'")

from scipy import ndimage

from train import evaluate
from train.evaluation import pose, vbench_figures, yume_bench
from train.evaluation.published import COLUMNS, ROWS
from world_model.actions import Action
from world_model.camera import CameraConfig, rotation

CAMERA = CameraConfig()
# as the package has it, as far as the worker calls it: figures are the means of the files' bytes, plus the bytes of the weights
STAND_IN = """
import json, os
from pathlib import Path

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.out = Path(output_path)

    def evaluate(self, videos_path, name, dimension_list, local, read_frame, mode):
        assert local and mode == "custom_input"
        if dimension_list == ["imaging_quality"]:
            raise RuntimeError("a network that cannot be built")
        weights = sum(f.stat().st_size for f in Path(os.environ["VBENCH_CACHE_DIR"]).rglob("*.p*") if f.is_file())
        rows = [{"video_path": str(v), "video_results": weights / 1000} for v in sorted(Path(videos_path).glob("*.mp4"))]
        mean = sum(row["video_results"] for row in rows) / len(rows)
        self.out.joinpath(name + "_eval_results.json").write_text(json.dumps({dimension_list[0]: [mean, rows]}))
"""


def panorama(turns: list[tuple[float, float]], steps: list[tuple[float, float]]) -> np.ndarray:
    """Pictures 136 x 240 of a textured room seen while turning (yaw, pitch in degrees) and standing at places (x, z)."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(400, 400)), 1.5, mode="wrap")
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    height, width = 136, 240
    focal = CAMERA.focal(width)
    rows, columns = np.mgrid[:height, :width]
    rays = np.stack([(columns - 119.5) / focal, (rows - 67.5) / focal, np.ones_like(rows, float)], axis=-1)
    pictures = []
    for (yaw, pitch), (x, z) in zip(turns, steps):
        d = rays @ rotation(np.radians(yaw), np.radians(pitch)).T
        # the walls of a box of 8 x 3 x 8 metres around the origin
        with np.errstate(divide="ignore"):
            far = np.stack(
                [(np.sign(d[..., i]) * half - at) / d[..., i] for i, half, at in ((0, 4, x), (1, 1.5, 0), (2, 4, z))]
            )
        side = far.argmin(axis=0)
        hit = np.array([x, 0, z]) + d * far.min(axis=0)[..., None]
        u = np.where(side == 0, hit[..., 2], hit[..., 0]) * 40 + 100 * side
        v = np.where(side == 1, hit[..., 2], hit[..., 1]) * 40
        grey = ndimage.map_coordinates(noise, [v % 400, u % 400], order=1, mode="grid-wrap")
        pictures.append(np.repeat(grey[..., None], 3, axis=2).round().astype(np.uint8))
    return np.stack(pictures)


@pytest.mark.parametrize(
    ("turn", "step", "keys", "arrows"),
    [
        ((0, 0), (0, 0.15), "W", ""),
        ((0, 0), (-0.15, 0), "A", ""),
        ((2.8, 0), (0, 0), "", "→"),
        ((0, -1.9), (0, 0), "", "↓"),
        ((-2.8, 0), (0, 0.15), "W", "←"),
    ],
)
def test_pose_estimation_names_what_was_held(turn, step, keys, arrows):
    """16 pictures a second of a known camera at the speeds of a held key."""
    video = panorama([(i * turn[0], i * turn[1]) for i in range(9)], [(i * step[0], i * step[1]) for i in range(9)])
    assert pose.held_keys(video, 16, CAMERA, stride=2) == Action.from_keys(keys, arrows)


def test_nothing_is_named_where_nothing_is_to_be_seen():
    assert pose.held_keys(np.full((5, 40, 60, 3), 128, np.uint8), 16, CAMERA) is None
    assert yume_bench.followed([None, Action.from_keys("W")], [Action.from_keys("W")] * 2)["both"] == 0.5


def test_an_arrow_at_the_limit_of_the_tilt_asks_for_nothing(config):
    done = yume_bench.done_by(Action.from_keys("W", "↑→"), config, 30)
    assert done[0] == Action.from_keys("W", "↑→") and done[-1] == Action.from_keys("W", "→")


@pytest.fixture
def environment(tmp_path):
    """A Python that finds a stand-in for vbench, and a folder with weights of all figures but one."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "vbench.py").write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "packages"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for names in vbench_figures.FILES.values():
        for name in names:
            (tmp_path / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "weights" / name).write_bytes(b"0123456789")
    (tmp_path / "weights" / "amt_model" / "amt-s.pth").unlink()
    return python, tmp_path / "weights"


def test_the_bench_runs_end_to_end_and_names_what_it_cannot_compute(weights_folder, environment, tmp_path, capsys):
    python, weights = environment
    command = [str(weights_folder), "--bench", "yume", "--out", str(tmp_path / "out"), "--walks", "2", "--frames", "8"]
    evaluate.main([*command, "--vbench-python", str(python), "--vbench-weights", str(weights)])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    figures, reasons = report["figures"], report["reasons"]
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 2
    assert figures["subject_consistency"] == figures["aesthetic_quality"] > 0  # read by the worker from the files
    assert "amt_model/amt-s.pth" in reasons["motion_smoothness"] and figures["motion_smoothness"] is None
    assert "a network that cannot be built" in reasons["imaging_quality"]
    assert "train one for it" in reasons["instruction_following_judge"]  # the judge reads other pictures
    missing = {name for name, value in figures.items() if value is None}
    assert missing == reasons.keys() & figures.keys()  # no figure is missing without a reason
    told = capsys.readouterr().out
    assert "Yume1.5 (published) | 8.000 | – | – | 0.836 | 0.932 | 0.945 | 0.985 | 0.506 | 0.728" in told
    assert all(f"Not computed: {name}" in told for name in reasons)
    assert "videos are 32x48, the bench's are 544x960" in told
    assert all(len(row.figures) == len(COLUMNS) for row in ROWS)


def test_without_the_package_all_five_figures_say_so(tmp_path):
    for name in vbench_figures.FILES:
        with pytest.raises(vbench_figures.Unavailable, match="no Python with the package vbench"):
            vbench_figures.measure(tmp_path, name, None, tmp_path)

"""Where a picture was taken: cells and headings, the search around them, and how the network is taught."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopped import stopped_after
from torch import Tensor

from train import finder as stage
from train.data.shards import Shard, find_shards
from train.evaluation.sheet import to_video
from train.finder import Settings, Views, errors, train
from world_model.priors.config import scene_of
from world_model.priors.finder import CANDIDATES, CELL, HEADINGS, ROUNDS, WIDER, Finder
from world_model.rollout import generator

PERIOD = 80.0
QUICK = Settings(batch=2, walked=3, ema=0.9, lr=3e-3)


@pytest.fixture(scope="module")
def finder() -> Finder:
    torch.manual_seed(0)
    return Finder(PERIOD, (32, 48), width=8).requires_grad_(False)


@pytest.fixture(scope="module")
def views(town_config, data_folder) -> Views:
    return Views(town_config, data_folder, Settings())


@pytest.fixture
def poses() -> Tensor:
    """Sixty of them, also far around the torus and turned often."""
    stream = generator("poses")
    place = torch.rand(60, 2, generator=stream, dtype=torch.float64) * 5 * PERIOD - 2 * PERIOD
    return torch.cat([place, torch.randn(60, 1, generator=stream, dtype=torch.float64) * 5], dim=1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """How far poses lie apart [..., 3] (metres, metres, radians), around the torus and the circle."""
    around = torch.tensor([PERIOD, PERIOD, 2 * math.pi], dtype=torch.float64)
    return ((a - b + around / 2) % around - around / 2).abs()


# ---- cells and headings -----------------------------------------------------------------------------------------------


def test_labels_are_cells_and_where_inside_them(finder, poses):
    """Against whole-number arithmetic, one pose after the other."""
    index, inside = finder.labels(poses)
    assert inside.dtype == torch.float32 and inside.shape == (60, 3, 2)
    for pose, cells, turns in zip(poses.tolist(), index.tolist(), inside.tolist()):
        for value, unit, count, cell, (cosine, sine) in zip(
            pose, (CELL, CELL, 2 * math.pi / HEADINGS), (20, 20, 16), cells, turns
        ):
            assert cell == math.floor(value / unit) % count
            turn = 2 * math.pi * (value / unit - math.floor(value / unit))
            assert (cosine, sine) == pytest.approx((math.cos(turn), math.sin(turn)), abs=1e-5)


def answering(finder: Finder, monkeypatch, scores: tuple[Tensor, ...], inside: Tensor) -> None:
    """Makes the network answer so."""
    monkeypatch.setattr(Finder, "forward", lambda self, pictures: (scores, inside))


def test_the_likeliest_candidate_is_the_pose_that_was_labelled(finder, poses, monkeypatch):
    index, inside = finder.labels(poses)
    for pose, cells, turns in zip(poses, index, inside):
        scores = tuple(torch.zeros(1, n).index_fill(1, i[None], 9.0) for n, i in zip(finder.cells, cells))
        answering(finder, monkeypatch, scores, turns[None])
        found = finder.candidates(torch.zeros(1, 3, 32, 48), 1)
        assert found.shape == (1, 3) and found.dtype == torch.float64
        assert ((found >= 0) & (found < torch.tensor([PERIOD, PERIOD, 2 * math.pi]) + 1e-6)).all()
        assert apart(found[0], pose).max() < 1e-3


def test_candidates_come_in_the_order_of_their_scores(finder, monkeypatch):
    """Against all combinations, sorted."""
    scores = tuple(torch.randn(1, n, generator=generator("scores", i)) for i, n in enumerate(finder.cells))
    answering(finder, monkeypatch, scores, torch.tensor([[[0.0, 1.0]] * 3]))  # a quarter into each cell
    joint = {
        where: sum(float(part[0].log_softmax(0)[i]) for part, i in zip(scores, where))
        for where in np.ndindex(*finder.cells)
    }
    best = sorted(joint, key=lambda where: -joint[where])[:7]
    units = torch.tensor([CELL, CELL, 2 * math.pi / HEADINGS], dtype=torch.float64)
    expected = (torch.tensor(best) + 0.25) * units
    torch.testing.assert_close(finder.candidates(torch.zeros(1, 3, 32, 48), 7), expected, atol=1e-5, rtol=0)


def test_answers_have_a_score_for_every_cell(finder, pictures):
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    (x, z, heading), inside = finder(batch)
    assert x.shape == z.shape == (4, 20) and heading.shape == (4, HEADINGS) and inside.shape == (4, 3, 2)
    assert (heading[0] - heading[1]).abs().max() > 1e-4  # it looks at the pictures
    odd = Finder(PERIOD, (40, 72), width=8)  # a size that halving does not divide
    assert odd(torch.zeros(1, 3, 40, 72))[0][0].shape == (1, 20)


# ---- the search -------------------------------------------------------------------------------------------------------


class Waves:
    """Stands for a scene field: latents that change smoothly with the pose."""

    words = 5

    def __init__(self) -> None:
        stream = generator("waves")
        self.mixing = torch.randn(8 * 4 * 6, 6, generator=stream, dtype=torch.float64)
        self.asked = 0

    def looks(self, first: Tensor, last: Tensor, present: Tensor, context: Tensor) -> Tensor:
        assert torch.equal(first, last) and present.all() and not context.any()  # the picture is enough
        assert context.shape[-1] == self.words
        return torch.zeros(1, 4)

    def __call__(self, place: Tensor, yaw: Tensor, pitch: Tensor, look: Tensor) -> Tensor:
        assert not pitch.any() and place.dtype == torch.float64
        self.asked += yaw.shape[1]
        angles = torch.cat([place * 2 * math.pi / 20, yaw[..., None]], dim=-1)
        latents = torch.cat([angles.cos(), angles.sin()], dim=-1) @ self.mixing.T
        return latents.unflatten(-1, (8, 4, 6)).permute(0, 2, 1, 3, 4).float()

    def free(self, place: Tensor) -> Tensor:
        return torch.ones(len(place), dtype=torch.bool)

    def at(self, pose: Tensor) -> Tensor:
        """[1, C, h, w] seen at a pose [3]."""
        return self(pose[None, None, :2], pose[None, None, 2], torch.zeros(1, 1), torch.zeros(1, 4))[:, :, 0]


@pytest.mark.parametrize(("off", "rank"), [((1.2, -1.1, 0.1), 0), ((-0.7, 1.25, -0.11), CANDIDATES - 1)])
def test_the_search_finds_the_pose_from_a_candidate_nearby(off, rank, finder, monkeypatch):
    """To a decimetre and a degree, though that candidate be the least likely of those looked at."""
    town, pose = Waves(), torch.tensor([23.4, 61.8, 2.2], dtype=torch.float64)
    assert all(abs(value) < reach for value, reach in zip(off, (ROUNDS[0][1], ROUNDS[0][1], ROUNDS[0][2])))
    wrong = torch.rand(CANDIDATES, 3, generator=generator("wrong")).double() * torch.tensor([80.0, 80.0, 6.0])
    wrong[rank] = pose + torch.tensor(off)
    monkeypatch.setattr(Finder, "candidates", lambda self, picture, count: wrong[:count])
    found, error = finder.find(town, torch.zeros(1, 3, 32, 48), town.at(pose))
    away = apart(found, pose)
    assert away[:2].max() < 0.1 and math.degrees(away[2]) < 1
    assert 0 <= error < 0.01
    assert town.asked - 1 == CANDIDATES + 27 * sum(kept for kept, *_ in ROUNDS)


def test_an_uncertain_search_is_repeated_among_more_candidates(finder, monkeypatch):
    """The pose is none of the candidates that are looked at first."""
    town, pose = Waves(), torch.tensor([23.4, 61.8, 2.2], dtype=torch.float64)
    wrong = torch.tensor([3.0, 2.0, 5.0], dtype=torch.float64).repeat(WIDER * CANDIDATES, 1)
    wrong[CANDIDATES + 3] = pose + torch.tensor([1.2, -1.1, 0.1])
    monkeypatch.setattr(Finder, "candidates", lambda self, picture, count: wrong[:count])
    found, error = finder.find(town, torch.zeros(1, 3, 32, 48), town.at(pose))
    assert apart(found, pose)[:2].max() < 0.1 and error < 0.01
    assert town.asked - 1 == (1 + WIDER) * (CANDIDATES + 27 * sum(kept for kept, *_ in ROUNDS))


def test_a_picture_of_elsewhere_has_a_large_residual(finder, monkeypatch):
    """The error says so: about the fraction of the picture, its colours' means aside, that nothing explains."""
    town = Waves()
    monkeypatch.setattr(Finder, "candidates", lambda self, picture, count: torch.zeros(count, 3, dtype=torch.float64))
    noise = torch.randn(1, 8, 4, 6, generator=generator("noise"))
    found, error = finder.find(town, torch.zeros(1, 3, 32, 48), noise)
    rest, own = (x.flatten(2) - x.flatten(2).mean(dim=2, keepdim=True) for x in (town.at(found) - noise, noise))
    assert error == pytest.approx(float(rest.square().sum() / own.square().sum()), rel=1e-4) and error > 1


def test_nobody_stands_in_a_house(finder, monkeypatch):
    """The picture was taken in one, and of the candidates all but the last are in it: what is found is outside."""
    town, pose = Waves(), torch.tensor([23.4, 61.8, 2.2], dtype=torch.float64)
    near = pose + 0.1 * torch.randn(CANDIDATES, 3, generator=generator("near"), dtype=torch.float64)
    near[-1] = pose + torch.tensor([3.0, 0.0, 0.2])
    monkeypatch.setattr(Finder, "candidates", lambda self, picture, count: near[:count])
    free = []
    monkeypatch.setattr(town, "free", lambda place: free.append(place) or place[:, 0] > float(pose[0]) + 2)
    found, error = finder.find(town, torch.zeros(1, 3, 32, 48), town.at(pose))
    assert float(pose[0]) + 2 < float(found[0]) < float(pose[0]) + 2.6 and error > 0.01
    assert max(len(places) for places in free) <= 27 * ROUNDS[0][0] * WIDER


def test_another_light_is_no_other_pose(finder, monkeypatch):
    """A picture of the town that is brighter or darker in every channel is found as if it were not, and as like."""
    town, pose = Waves(), torch.tensor([23.4, 61.8, 2.2], dtype=torch.float64)
    start = pose + torch.tensor([1.2, -1.1, 0.1])
    monkeypatch.setattr(Finder, "candidates", lambda self, picture, count: start.repeat(count, 1))
    found, error = finder.find(town, torch.zeros(1, 3, 32, 48), town.at(pose) + 0.3)
    assert apart(found, pose)[:2].max() < 0.3 and error < 0.1


# ---- views ------------------------------------------------------------------------------------------------------------


def test_views_carry_the_pose_they_were_drawn_from(views, monkeypatch):
    """Against the camera of the simulator at the moment of each picture."""
    ((street, start),), drawn = views.streets, []
    assert not start.any()
    reset = street.reset

    def watched(*given, **named) -> np.ndarray:
        picture = reset(*given, **named)
        drawn.append((picture.copy(), street.pose, street.pitch))
        return picture

    monkeypatch.setattr(street, "reset", watched)
    pictures, poses = views.draw(24, 1, "views")
    assert poses.dtype == torch.float64 and len(drawn) == 24
    for picture, pose, (shown, camera, _) in zip(pictures, poses, drawn):
        assert torch.equal(picture, to_video(shown[None])[:, 0])
        assert pose[:2].tolist() == [camera[0, 3], camera[2, 3]]
        assert apart(pose, torch.tensor([*pose[:2], math.atan2(camera[0, 2], camera[2, 2])])).max() < 1e-9
    tilted = [pitch != 0 for *_, pitch in drawn]
    assert 0 < sum(tilted) < 12
    again, other = views.draw(24, 1, "views"), views.draw(24, 2, "views")
    assert torch.equal(again[0], pictures) and torch.equal(again[1], poses)
    assert not torch.equal(other[1], poses)


def test_walked_pictures_carry_their_poses(views, data_folder):
    shard = Shard(find_shards(data_folder)[0])
    pictures, poses = views.walked(9, 3)
    for picture, pose in zip(pictures, poses):
        here = (shard.position == pose[:2].numpy().astype(np.float32)).all(axis=-1)
        here &= shard.yaw == np.float32(pose[2])
        frames = [to_video(shard.frames(walk, frame, frame + 1))[:, 0] for walk, frame in np.argwhere(here)]
        assert any(torch.equal(picture, frame) for frame in frames)
    assert len({tuple(pose) for pose in poses.tolist()}) > 6
    assert torch.equal(views.walked(9, 3)[0], pictures) and not torch.equal(views.walked(9, 4)[0], pictures)


# ---- training ---------------------------------------------------------------------------------------------------------


def test_errors_are_shares_of_right_answers(finder, poses, monkeypatch):
    index, inside = finder.labels(poses)
    index = index.clone()
    index[:15, 0] = (index[:15, 0] + 1) % 20
    index[10:40, 2] = (index[10:40, 2] + 1) % 16
    scores = tuple(torch.zeros(60, n).scatter(1, index[:, i : i + 1], 1.0) for i, n in enumerate(finder.cells))
    answering(finder, monkeypatch, scores, inside)
    found = errors(finder, (torch.zeros(60, 3, 32, 48), poses))
    assert found == pytest.approx({"x": 0.75, "z": 1.0, "heading": 0.5, "all": 20 / 60})


def test_training_writes_weights_and_resumes_exactly(town_config, data_folder, tmp_path, monkeypatch):
    """4 steps at once equal 2 and, from the checkpoint alone, 2 more."""
    monkeypatch.setattr(stage, "HELD_OUT_VIEWS", 4)

    def run(name: str, steps: int = 4) -> dict[str, Tensor]:
        train(town_config, data_folder, tmp_path / name, QUICK, steps, None)
        return load_file(tmp_path / name / stage.WEIGHTS)

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())

    start, whole = run("start", 0), run("whole")
    assert all(value.isfinite().all() for value in whole.values())
    assert not any(torch.equal(value, start[name]) for name, value in whole.items())  # every layer learns
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", stopped_after(2))
        assert not same(run("parts"), whole)
    assert same(run("parts"), whole)
    network = Finder(scene_of(town_config).places.period, (town_config.height, town_config.width))
    network.load_state_dict(whole)
    facts = json.loads((tmp_path / "whole" / "finder.json").read_text())["finder_training"]
    assert facts["steps"] == 4 and facts.keys() == {"steps", "x", "z", "heading", "all"}
    assert all(0 <= facts[name] <= 1 for name in ("x", "z", "heading", "all"))


def test_it_learns_where_a_few_pictures_were_taken(town_config, data_folder, tmp_path, monkeypatch):
    """The same few again and again: after a minute of steps most of their cells are right."""
    views = Views(town_config, data_folder, QUICK)
    known = views.draw(6, "few")
    monkeypatch.setattr(Views, "draw", lambda self, count, *key: known)
    monkeypatch.setattr(Views, "walked", lambda self, count, *key: (known[0][:0], known[1][:0]))

    class Narrow(Finder):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, width=8, **kwargs)

    monkeypatch.setattr(stage, "Finder", Narrow)
    train(town_config, data_folder, tmp_path, replace(QUICK, blurred=0.0, ema=0.8), 60, None)
    facts = json.loads((tmp_path / "finder.json").read_text())["finder_training"]
    assert facts["x"] >= 0.8 and facts["z"] >= 0.8 and facts["heading"] >= 0.8


def test_models_without_a_town_have_no_relocalisation(config, data_folder, tmp_path):
    with pytest.raises(ValueError, match=r"debug knows no town: its scene prior has no places"):
        train(config, data_folder, tmp_path, QUICK, 1, None)


def test_command_line(town_config, data_folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "train", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(stage, "prepare_cpu", lambda: None)
    path = tmp_path / "config.json"
    path.write_text(town_config.to_json())
    words = f"finder {path} --data {data_folder} --out {tmp_path} --steps 5 --batch 7 --walked 9"
    monkeypatch.setattr("sys.argv", words.split())
    stage.main()
    assert given == [(town_config, Path(data_folder), tmp_path, Settings(batch=7, walked=9), 5, None, None)]

"""The judge: its networks and their training."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from configs import with_video
from judge_data import folder_fixture, rng, street_fixture  # noqa: F401  (fixtures, too)
from safetensors.torch import load_file, save_file
from street_judge import judge_fixture  # noqa: F401  (a fixture)

from train.judge.architecture import FIRST_THINGS
from train.judge.data import THINGS, street_of
from train.judge.motion import LUMA
from train.judge.network import WEIGHTS, Judge, axes_of, classes_of, judge_metadata
from train.judge.training import Blocks, Degradation, Settings, accuracy, judge_loss, train
from train.judge.training import main as judge_main
from train.street.routes import balanced_route, open_start
from world_model.actions import Action

CLEAR = Degradation(blurred=0.0, noise=0.0)


class TestNetwork:
    def test_classes_and_axes_agree(self):
        units = (1.0, 1.0, 20.0, 10.0)
        axes = axes_of(np.arange(81))
        move, look = classes_of(axes * np.array([0.7, 0.7, 20.0, 10.0]), units)
        assert (9 * move + look == np.arange(81)).all()

    @pytest.mark.parametrize("keys", ["→", "←", "↑", "↓", "↑←"])
    def test_turning_back_undoes_a_turn(self, street, config, keys):
        """The middle of all pictures is then that of the middle picture, and turning further the wrong way is worse."""
        action = Action.from_keys("", keys)
        frames = np.concatenate([open_start(street, rng())[None], street.step(action).frames])
        grey = torch.from_numpy(frames @ LUMA).float()[None] / 255
        network = Judge.of(config).motion
        middle = (..., slice(config.height // 4, -config.height // 4), slice(config.width // 4, -config.width // 4))

        def difference(sign):
            turned = network.turn_back(grey, sign * torch.tensor([action.turn], dtype=torch.float32))
            return float((turned - turned[:, 2:3])[middle].abs().mean())

        assert difference(1) < 0.4 * difference(0) and difference(0) < difference(-1) + 0.05

    def test_shapes_and_errors(self, judge, config):
        frames = np.zeros((3, config.frames_per_block + 1, config.height, config.width, 3), np.uint8)
        reading = judge.read(frames)
        assert reading.action.shape == (3,) and reading.motion.shape == (3, 4) and reading.features.shape == (3, 128)
        with pytest.raises(ValueError, match="blocks must be uint8"):
            judge.read(frames[:, 1:])

    def test_reading_does_not_depend_on_the_batch(self, judge, config):
        frames = rng().integers(
            0, 256, (5, config.frames_per_block + 1, config.height, config.width, 3), dtype=np.uint8
        )
        whole, parts = judge.read(frames), judge.read(frames, batch=2)
        assert whole.motion == pytest.approx(parts.motion, abs=1e-4)

    def test_distance(self, judge, pictures):
        same, other = judge.distance(pictures, pictures), judge.distance(pictures, pictures[::-1])
        assert same == pytest.approx(np.zeros(4), abs=1e-5)
        assert (other > 0.01).all()

    def test_save_and_load(self, judge, config, tmp_path):
        judge.save(tmp_path / "judge.safetensors", {"steps": 3})
        loaded = Judge.load(config, tmp_path / "judge.safetensors")
        frames = rng().integers(
            0, 256, (2, config.frames_per_block + 1, config.height, config.width, 3), dtype=np.uint8
        )
        assert loaded.read(frames).motion == pytest.approx(judge.read(frames).motion, abs=0.05)
        assert judge_metadata(tmp_path / "judge.safetensors")["steps"] == 3

    def test_other_pictures_and_missing_weights_are_refused(self, judge, config, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train\.judge train"):
            Judge.load(config, tmp_path / "judge.safetensors")
        judge.save(tmp_path / "judge.safetensors", {})
        with pytest.raises(ValueError, match="train one for it"):
            Judge.load(with_video(config, fps=16), tmp_path / "judge.safetensors")


class TestTraining:
    def test_mirrored_and_reversed_pictures_have_such_labels(self, folder, judge):
        """Undo what was done to the pictures and the labels must be those of the data again."""
        blocks = Blocks(folder)
        settings = Settings(batch=40, degradation=CLEAR)
        grey, _, labels = blocks.draw(settings, 0)
        found = {(False, False): 0, (False, True): 0, (True, False): 0, (True, True): 0}
        for k in range(len(grey)):
            for number, (mirrored, backwards) in itertools.product(range(len(blocks)), found):
                pictures = blocks.pictures(number) @ LUMA / 255
                pictures = pictures[..., ::-1] if mirrored else pictures
                pictures = pictures[::-1] if backwards else pictures
                if abs(grey[k].numpy() - pictures).max() > 1e-4 or abs(pictures[0] - pictures[-1]).max() < 0.05:
                    continue
                motion = blocks.labels["motion"][number] * ([1, -1, -1, 1] if mirrored else [1, 1, 1, 1])
                assert labels["motion"][k].numpy() == pytest.approx(-motion if backwards else motion, abs=1e-5)
                found[mirrored, backwards] += 1
        assert min(found.values()) > 2

    def test_pictures_to_look_at_have_their_labels(self, folder):
        blocks = Blocks(folder)
        _, sight, labels = blocks.draw(Settings(batch=40, things=1.0, degradation=CLEAR), 1)
        last = {blocks.pictures(i)[-1].tobytes(): i for i in range(len(blocks))}
        for k in range(40):
            picture = (sight[k] * 255).round().byte().permute(1, 2, 0).numpy()
            number = last.get(picture.tobytes(), last.get(picture[:, ::-1].tobytes()))
            assert number is not None
            assert all(
                np.array_equal(labels[name][k].numpy(), blocks.labels[name][number])
                for name in ("light", "weather", "district", "things")
            )
            assert (labels["things"][k] == 1).any() or not len(blocks.unusual)

    def test_it_overfits_a_batch(self, folder, config):
        torch.manual_seed(0)
        judge, blocks = Judge.of(config), Blocks(folder)
        batch = blocks.draw(Settings(batch=24), 0)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
        first = None
        for _ in range(40):
            loss = sum(judge_loss(judge, batch).values())
            first = float(loss.detach()) if first is None else first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.25 * first

    def test_accuracy_of_a_judge_that_is_always_right(self, folder, judge, monkeypatch):
        blocks = Blocks(folder)
        reading = judge.read(np.stack([blocks.pictures(i) for i in range(len(blocks))]))
        move, look = classes_of(blocks.labels["motion"], judge.units.numpy())
        right = replace(reading, move=move, look=look, motion=blocks.labels["motion"])
        monkeypatch.setattr(judge, "read", lambda frames: right)
        figures = accuracy(judge, blocks)
        assert figures["joint"] == figures["recall/turn"] == figures["r2/tilt"] == 1
        monkeypatch.setattr(judge, "read", lambda frames: replace(right, look=(look + 1) % 9))
        assert accuracy(judge, blocks)["joint"] == 0

    def test_command(self, folder, tmp_path):
        weights = tmp_path / "judge.safetensors"
        for _ in range(2):  # the second time there is nothing left to do
            judge_main(
                ["--model", "debug", "train", "--data", str(folder), "--test", str(folder), "--out", str(tmp_path / "run"),
                 "--weights", str(weights), "--steps", "3"]
            )  # fmt: skip
            assert [stage["steps"] for stage in judge_metadata(weights)["training"]] == [3]

    def test_one_network_alone(self, folder, judge, config, tmp_path):
        """Going on with sight alone leaves motion as it was."""
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        judge.save(first, {"training": [{"steps": 7}]})
        judge_main(
            ["--model", "debug", "train", "--data", str(folder), "--test", str(folder), "--out", str(tmp_path / "run"),
             "--weights", str(second), "--steps", "2", "--only", "sight", "--initial", str(first)]
        )  # fmt: skip
        before, after = (Judge.load(config, path).state_dict() for path in (first, second))
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"sight"}
        assert [stage["steps"] for stage in judge_metadata(second)["training"]] == [7, 2]

    def test_later_objects_are_learnt_besides_all_others(self, folder, judge, config, tmp_path):
        """A judge that lacks them goes on; whatever it said of a picture it says still."""
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        judge.save(first, {"training": [{"network": "both", "steps": 7}], "tested_on": "a", "accuracy": {"joint": 0.5}})
        save_file({name: value for name, value in load_file(first).items() if not name.startswith("later.")}, first)
        judge_main(
            ["--model", "debug", "train", "--data", str(folder), "--test", str(folder), "--out", str(tmp_path / "run"),
             "--weights", str(second), "--steps", "3", "--only", "later", "--fresh", "--initial", str(first)]
        )  # fmt: skip
        before, after = load_file(first), load_file(second)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"later"}
        frames = rng().integers(
            0, 256, (2, config.frames_per_block + 1, config.height, config.width, 3), dtype=np.uint8
        )
        said, says = judge.half().float().read(frames), Judge.load(config, second).read(frames)
        assert np.array_equal(said.things[:, :FIRST_THINGS], says.things[:, :FIRST_THINGS])
        assert np.array_equal(said.features, says.features) and says.things.shape == (2, len(THINGS))
        metadata = judge_metadata(second)
        assert (
            metadata["tested_on"] == "a"
            and metadata["accuracy"]["joint"] == 0.5
            and "imagined/tram" in metadata["accuracy"]
        )
        assert [stage["network"] for stage in metadata["training"]] == ["both", "later"]

    def test_a_network_of_another_shape_is_trained_afresh(self, folder, judge, config, tmp_path):
        """The other is taken as it is; what does not fit is refused otherwise, and so are weights for other pictures."""
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        judge.save(first, {"training": [{"network": "both", "steps": 7}, {"network": "sight", "steps": 8}]})
        tensors = {**load_file(first), "sight.things.weight": torch.zeros(3)}
        save_file(tensors, first)
        words = ["--model", "debug", "train", "--data", str(folder), "--test", str(folder), "--out", str(tmp_path / "run"),
                 "--weights", str(second), "--steps", "1", "--initial", str(first)]  # fmt: skip
        with pytest.raises(RuntimeError, match=r"sight\.things\.weight"):
            judge_main([*words, "--only", "sight"])
        with pytest.raises(SystemExit):
            judge_main([*words, "--fresh"])
        judge_main([*words, "--only", "sight", "--fresh"])
        after = load_file(second)
        assert all(torch.equal(after[name], value) for name, value in tensors.items() if name.startswith("motion."))
        assert [stage["steps"] for stage in judge_metadata(second)["training"]] == [7, 1]
        with pytest.raises(ValueError, match="train one for it"):
            train(
                with_video(config, fps=16),
                folder,
                folder,
                tmp_path / "other",
                second,
                Settings(only="sight", fresh=True),
                1,
                first,
            )


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the trained judge is not in this checkout")
def test_the_shipped_judge_reads_the_street():
    """In the world model's town, where the judge never was."""
    from world_model.presets import get_preset

    config = get_preset("street")
    judge, street = Judge.load(config), street_of(config, 0)
    hits = []
    for number in range(3):
        picture = open_start(street, rng(40 + number))
        route = balanced_route(street, rng(50 + number), 12)
        frames = np.concatenate([picture[None], *(street.step(action).frames for action in route.actions)])
        size = config.frames_per_block
        reading = judge.read(np.stack([frames[k * size : (k + 1) * size + 1] for k in range(len(route))]))
        hits += [said == action.index for said, action in zip(reading.action, route.actions)]
    assert np.mean(hits) > 0.7
    assert WEIGHTS.stat().st_size < 1_500_000

"""train.street_world: weights in parts, texts from a table, waiting for a renderer. Its stages are those of train.world."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from configs import RECORDING, WALK, with_dit
from expert_world import SMALL, toy
from safetensors.torch import save_file

from train import street_world
from train.engine.optimization import optimizers
from train.generator import handed_on
from train.generator.handed_on import join_parts, learn_only, taken_over, write_parts
from train.generator.shapes import recorded_config
from train.recordings import Episode, EpisodeWriter, RecordingError
from train.street import text_table
from train.street.episodes import every_phrase
from train.street.text_table import TextTable
from train.street_world import CPU, GPU, wait_for
from world_model.dit import DiT
from world_model.presets import get_preset
from world_model.text import HashedEncoder


def test_weights_come_back_from_their_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(handed_on, "PART", 3000)
    random = torch.Generator().manual_seed(0)
    files = {
        "dit.safetensors": {f"layer.{i}": torch.randn(10, 50, generator=random).half() for i in range(5)},
        "vae.safetensors": {"mean": torch.randn(7, generator=random)},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    paths = write_parts(tmp_path)
    assert len(paths) > 1
    assert all(path.stat().st_size < 3000 + 600 for path in paths)  # with its header
    joined = join_parts(tmp_path / "parts")
    assert joined.keys() == files.keys()
    for name, tensors in files.items():
        assert joined[name].keys() == tensors.keys()
        assert all(torch.equal(joined[name][key], value) for key, value in tensors.items())


def test_no_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parts of weights"):
        join_parts(tmp_path)


@pytest.fixture
def table(tmp_path) -> TextTable:
    texts = ["rain falls", "fog rolls in"]
    words = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)
    tokens = torch.arange(2 * 3 * 4).view(2, 3, 4).half()
    save_file(
        {"tokens": tokens, "texts": words, "actions": torch.zeros(81, 2, 4).half()}, tmp_path / "texts.safetensors"
    )
    return TextTable(tmp_path / "texts.safetensors")


def test_a_table_stands_for_the_encoder(table):
    assert table.encode("fog rolls in", 3)[0].tolist() == [12, 13, 14, 15]
    assert table.encode("", 3).abs().sum() == 0
    with pytest.raises(ValueError, match="not in the table"):
        table.encode("a cat sits on the wall", 3)
    with pytest.raises(ValueError, match="holds 3 tokens"):
        table.encode("rain falls", 5)


def test_a_table_holds_the_captions_of_recordings(tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "build_text_encoder", lambda config: HashedEncoder(config))
    frames = np.zeros((3, 16, 32, 3), np.uint8)
    nothing = np.zeros(1, np.uint8)
    with EpisodeWriter(tmp_path / "data", RECORDING) as writer:
        for caption in ("a harbour at noon", None):
            writer.add(Episode(frames, np.zeros(1, int), np.zeros(1, np.float32), nothing, nothing, caption=caption))
    count = text_table.write_texts(tmp_path / "texts.safetensors", 0, 0, 1, recordings=[tmp_path / "data"])
    table, encoder = TextTable(tmp_path / "texts.safetensors"), HashedEncoder(get_preset("street").text)
    for text in ("a harbour at noon", sorted(every_phrase())[0]):
        torch.testing.assert_close(table.encode(text, 8), encoder.encode(text, 8), rtol=1e-3, atol=1e-3)
    assert count == len(every_phrase()) + 1 and table.actions.shape[0] == 81


def test_a_renderer_that_fails_is_not_waited_for(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as renderer:
        renderer.wait()
        with pytest.raises(RecordingError, match="exit code 3 after 0 episodes"):
            list(wait_for(tmp_path, 1, renderer))


def test_shares_of_the_minutes_add_up():
    for recipe in (CPU, GPU):
        assert sum(recipe.shares.values()) == pytest.approx(1)


def test_a_student_learns_text_starts_unless_the_weights_have_an_expert_for_them():
    fresh = street_world.planned(CPU, 0.3, None)
    assert fresh.shares["foundation"] == pytest.approx(0.63) and fresh.distill.text_start > 0 and fresh.distill.fresh
    for expert, share in ((None, fresh.distill.text_start), (SMALL, 0.0)):
        further = street_world.planned(CPU, 1.0, toy(expert), further=True)
        assert further.distill.text_start == share and not further.distill.fresh
        assert further.shares == {"autoencoder": 0.0, "foundation": 0.0, "distill": 1.0}


def test_learning_rates_can_fall_from_the_start():
    assert street_world.planned(CPU, 0.0, None, cooldown=1.0).foundation.optimization.cooldown == 1.0
    assert street_world.planned(CPU, 0.0, None).foundation == CPU.foundation


def test_wrong_options_are_refused_before_anything_is_written(monkeypatch, capsys, tmp_path):
    for wrong in ("0", "1.5"):
        monkeypatch.setattr(sys, "argv", ["street_world", "train", "--out", str(tmp_path / "run"), "--cooldown", wrong])
        with pytest.raises(SystemExit):
            street_world.main()
        assert "share above 0" in capsys.readouterr().err
    command = ["street_world", "train", "--out", str(tmp_path / "run"), "--recording", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        street_world.main()
    assert "--recording" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_more_residual_blocks_begin_as_the_identity(make_dit):
    """The others are taken over, and displacements stay as they were."""
    config = recorded_config("walk", WALK, False, "tiny")
    earlier, dit = make_dit(with_dit(config, flow_blocks=2), 0).state_dict(), DiT(with_dit(config, flow_blocks=4))
    found = taken_over(dit, earlier)
    new = {name for name in found if name not in earlier}
    assert new == {name for name in found if name.startswith(("flow.blocks.2.", "flow.blocks.3."))} != set()
    assert all(torch.equal(found[name], value) for name, value in earlier.items())
    assert not any(found[name].any() for name in new if ".conv2.weight" in name)
    assert set(taken_over(dit, {"flow.blocks.0.conv1.weight": torch.ones(1)})) == set(found)


def test_parts_can_learn_alone(config, make_dit):
    dit = make_dit(config)
    learn_only(dit, ["head.head", "blocks.0"])
    for name, parameter in dit.named_parameters():
        assert parameter.requires_grad == name.startswith(("head.head.", "blocks.0.")), name
    taught = [p for o in optimizers(dit, 0.1, 0.0) for group in o.param_groups for p in group["params"]]
    assert len(taught) == sum(p.requires_grad for p in dit.parameters())
    with pytest.raises(ValueError, match=r"no part 'tone' that could learn, only .*head\.head"):
        learn_only(dit, ["tone"])


def test_parts_that_were_changed_since_begin_fresh_as_a_whole(config, make_dit):
    """A weight that fits beside one that does not would be of no use; other layers stay."""
    dit, earlier = make_dit(config), make_dit(config, seed=1).state_dict()
    taken = taken_over(dit, earlier)
    assert taken.keys() == earlier.keys() and all(torch.equal(taken[name], earlier[name]) for name in earlier)
    changed = {**earlier, "head.head.weight": torch.zeros(3, 3), "gone.weight": torch.zeros(1)}
    del changed["head.head.bias"]
    taken, own = taken_over(dit, changed), dit.state_dict()
    assert taken.keys() == own.keys()
    for name, value in taken.items():
        assert torch.equal(value, own[name] if name.startswith("head.head.") else earlier[name]), name

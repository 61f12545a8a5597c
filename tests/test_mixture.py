"""One mixture of several downloaded sets: labels from wherever they are, worlds in shares of the weights, relabelling."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from train.data import captioner, commands, mixture, sekai
from train.data.clips import Clips
from train.data.shards import HELD_OUT
from train.data.video import write_video
from world_model.actions import Action
from world_model.camera import pose_matrix


def film(path: Path, config, seed: int = 0, blocks: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    frames = colours.repeat(config.frames_per_block * blocks, 0).repeat(8, 1).repeat(8, 2)
    write_video(path, frames, config.fps)
    return path


@pytest.fixture
def sets(config, tmp_path) -> Path:
    """sekai/ (a table and poses of a camera that walks back), openvid/ (a table), events/ (a description each)."""
    count = config.frames_per_block
    film(tmp_path / "sekai" / "video" / "a.mp4", config, 1)
    back = np.array([np.linalg.inv(pose_matrix(0, -0.3 * i, 0, 0, 1.6)) for i in range(count)])
    np.savez(tmp_path / "sekai" / "video" / "a.npz", extrinsics=back[None, :, :3])
    film(tmp_path / "openvid" / "b.mp4", config, 2)
    film(tmp_path / "events" / "c.mp4", config, 3).with_suffix(".txt").write_text("A dragon lands\non a roof.\n")
    for folder, column, name in (("sekai", "videoFile", "a"), ("openvid", "video", "b")):
        with (tmp_path / folder / "table.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[column, "caption"], [f"{name}.mp4", f"A street,\n seen by {name}."]])
    return tmp_path


def run(sets: Path, *more: str) -> None:
    given = ["--real", f"{sets}/sekai=2", "--synthetic", f"{sets}/openvid", "--events", f"{sets}/events=1"]
    commands.main(["debug", "mix", *given, "--out", str(sets / "mixture"), *more])


def test_labels_come_from_wherever_they_are(sets, capsys):
    run(sets, "--extrinsics", "w2c")
    a, b, c = (
        sekai.read_clip(sets / "mixture" / path)
        for path in ("real-0/video/a.mp4", "synthetic-1/b.mp4", "events-2/c.mp4")
    )
    assert (a.caption, b.caption, c.caption) == (
        "A street, seen by a.",
        "A street, seen by b.",
        "A dragon lands on a roof.",
    )
    assert (a.action, b.action) == (Action.from_keys("S"), Action())  # by its poses; by nothing
    assert (a.event, b.event, c.event) == (None, None, "A dragon lands on a roof.")
    assert (sets / "mixture" / "real-0" / "video" / "a.mp4").resolve() == sets / "sekai" / "video" / "a.mp4"
    assert "1 clips, 50.0% of the worlds" in capsys.readouterr().out


def test_matrices_of_unknown_direction_are_not_guessed(sets, capsys):
    with pytest.raises(SystemExit):
        run(sets)
    told = capsys.readouterr().err
    assert "--extrinsics" in told and "no usable video" in told


@pytest.mark.parametrize("weight", ["0", "-1", "much", "inf"])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ValueError, match="FOLDER=WEIGHT"):
        mixture.parse_source("real", f"clips={weight}")


def test_worlds_are_drawn_in_shares_of_the_weights(tmp_path, config, make_vae):
    """30 clips of weight 1 and 12 of weight 3; those held out are never trained on."""
    for name, count in (("many", 30), ("few", 12)):
        for i in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i:02d}.mp4").write_bytes(b"")
    sources = [mixture.Source("real", str(tmp_path / "many"), 1), mixture.Source("events", str(tmp_path / "few"), 3)]
    mixture.mix(config, sources, tmp_path / "out")
    clips = Clips(replace(config, priors=()), tmp_path / "out", make_vae(config))
    drawn = clips._order
    held, trained = drawn[:HELD_OUT], drawn[HELD_OUT:]
    assert set(held).isdisjoint(trained) and len(set(drawn)) == 42
    share = Counter(clips._videos[number].relative_to(tmp_path / "out").parts[0] for number in trained)
    assert share["events-1"] / len(trained) == pytest.approx(0.75, abs=0.01)


def vision_language_model(folder: Path) -> None:
    """A tiny random LLaVA with a tokenizer of a few words."""
    words = [
        "<pad>",
        "<unk>",
        "</s>",
        "<image>",
        "user",
        "assistant",
        *captioner.PROMPT.replace(",", " ,").replace(".", " .").split(),
    ]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    template = (
        "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}assistant"
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"])
    ).save_pretrained(folder)


def test_a_vision_language_model_relabels_every_clip(sets, monkeypatch):
    vision_language_model(sets / "model")
    monkeypatch.setenv("YUME_CAPTIONER", str(sets / "model"))
    run(sets, "--extrinsics", "w2c", "--captioner", "train.data.captioner:describe")
    a, c = (sekai.read_clip(sets / "mixture" / path) for path in ("real-0/video/a.mp4", "events-2/c.mp4"))
    assert a.event and a.event != a.caption == "A street, seen by a."  # the original one stays
    assert c.event and c.caption == "A dragon lands on a roof."


def test_a_captioner_that_does_not_exist_is_named(monkeypatch):
    with pytest.raises(ValueError, match="expected module:function"):
        mixture.load_captioner("train.data.captioner:nothing")
    monkeypatch.delenv("YUME_CAPTIONER", raising=False)
    with pytest.raises(ValueError, match="set YUME_CAPTIONER"):
        captioner.describe(np.zeros((1, 8, 8, 3), np.uint8), "real")


def test_keys_are_estimated_where_nothing_tells_them(config, tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    film(tmp_path / "walks" / "a.mp4", config, blocks=2)
    told = iter([Action.from_keys("W"), Action.from_keys("", "→")])
    pose = sys.modules.get("train.evaluation.pose") or __import__("train.evaluation.pose", fromlist=["pose"])
    monkeypatch.setattr(pose, "held_keys", lambda *_: next(told))
    mixture.mix(config, [mixture.Source("real", str(tmp_path / "walks"), 1)], tmp_path / "out", estimate=True)
    clip = sekai.read_clip(tmp_path / "out" / "real-0" / "a.mp4")
    frames = np.arange(2 * config.frames_per_block).reshape(2, -1)
    assert [clip.actions_of(block) for block in frames] == [Action.from_keys("W"), Action.from_keys("", "→")]

"""Reward and termination heads: targets, draws, calibration, files, and what is out of distribution."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from train.generator.fit import Budget, Stage
from train.generator.heads import (
    Augmentation,
    HeadTraining,
    OutcomeSteps,
    OutOfDistribution,
    Settings,
    best_temperature,
    best_threshold,
    build_heads,
    calibrate,
    evaluate,
    fit_familiarity,
    recall_at,
)
from train.generator.shapes import recorded_config
from train.generator.windows import EventTexts, LatentSet, StepTexts
from train.recordings import Recording
from world_model.action_spaces import ActionSpec
from world_model.config import ModelConfig
from world_model.heads import HeadsConfig, OutcomeHeads, load_heads, newest, reward_classes, save_heads
from world_model.uncertainty import Familiarity
from world_model.weights import save_weights


def toy_config(actions: int) -> ModelConfig:
    recording = Recording("Toy-v0", 40, 40, 10.0, ActionSpec("discrete", (actions,)), frames_per_step=2)
    return recorded_config("toy", recording, False, "tiny")


CONFIG = toy_config(3)
SIZES = {"channels": 6, "block": 2, "action_width": 3, "frames": 4, "width": 16, "hidden": 16, "embedding": 8}
SMALL = Settings(
    batch=32, lr=3e-3, width=16, augmentation=Augmentation(noise=0.1), ood=OutOfDistribution(fit_blocks=512)
)


def recorded(episodes: int = 6, length: int = 20, seed: int = 0, rewards: str = "rare", channels: int = 6) -> LatentSet:
    """Blocks of two frames of 4 x 5 places. A bright spot in channel 0 is rewarded; channel 1 shows the end."""
    random = torch.Generator().manual_seed(seed)
    rows, steps = episodes * (1 + 2 * length), episodes * length
    latents = 0.3 * torch.randn(rows, channels, 4, 5, generator=random)
    reward, terminated = torch.zeros(steps), torch.zeros(steps)
    begin = torch.arange(episodes + 1) * length
    first = torch.arange(episodes) * (1 + 2 * length)
    bright = torch.rand(steps, generator=random)
    for step in range(steps):
        episode, number = divmod(step, length)
        row = int(first[episode]) + 1 + 2 * number
        if bright[step] < 0.1:
            latents[row : row + 2, 0, 1, 1] += 5
            reward[step] = 1.0 if rewards == "rare" else float(10 * bright[step] + 0.01 * step)
        if number == length - 1 and episode % 2 == 0:
            latents[row : row + 2, 1] += 4
            terminated[step] = 1
    still = torch.cat([first[e] + 2 * torch.arange(length) for e in range(episodes)])
    none = torch.zeros(steps, dtype=torch.int64)
    action = torch.eye(3)[torch.randint(3, (steps,), generator=random)]
    nothing = torch.zeros(1, 0, 0)
    events = EventTexts(nothing, none, none[:episodes])
    return LatentSet(
        latents, torch.zeros(rows, 2), first, begin, still, action, StepTexts(nothing, none), events, reward, terminated
    )


def trained(
    data: LatentSet, folder: Path, steps: int = 250, settings: Settings = SMALL
) -> tuple[OutcomeHeads, HeadTraining]:
    torch.manual_seed(0)
    training = HeadTraining(data, 2, settings)
    heads = OutcomeHeads(HeadsConfig(*reward_classes(data.reward), **SIZES))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    stage = Stage(
        "heads", folder, Budget(10.0, steps=steps, warmup=10), {"heads": heads}, {"heads": [optimizer]}, {"heads": 0.9}
    )
    stage.run(training.step(stage))
    done = stage.averaged("heads").eval().requires_grad_(False)
    fit_familiarity(done, training)
    return done, training


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> OutcomeHeads:
    heads, _ = trained(recorded(), tmp_path_factory.mktemp("heads"))
    return calibrate(heads, recorded(seed=1), SMALL)


def latents_of(data: LatentSet, steps: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = OutcomeSteps(data, 2, 4).gather(torch.tensor(steps))
    return batch.latents, batch.action


def test_size_is_small():
    count = sum(p.numel() for p in build_heads(CONFIG, recorded(), Settings()).parameters())
    assert 100_000 < count < 350_000


def test_frames_before_the_start_are_copies_of_the_start_picture():
    data = recorded()
    rows = torch.arange(len(data.latents)).float()[:, None, None, None]
    data = dataclasses.replace(data, latents=rows.expand_as(data.latents))
    batch = OutcomeSteps(data, 2, 4).gather(torch.tensor([0, 1, 3, 20, 21]))
    assert batch.latents[:, 0, :, 0, 0].int().tolist() == [
        [0, 0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3, 4],
        [3, 4, 5, 6, 7, 8],
        [41, 41, 41, 41, 42, 43],
        [41, 41, 42, 43, 44, 45],
    ]
    fresh = OutcomeSteps(data, 2, 4).gather(torch.tensor([3]), fresh=torch.tensor([True]))
    assert fresh.latents[0, 0, :, 0, 0].tolist() == [6, 6, 6, 6, 7, 8]


def test_newest_frames_of_a_short_history_repeat_its_oldest():
    history, block = torch.arange(2.0).view(1, 1, 2, 1, 1), torch.tensor([7.0]).view(1, 1, 1, 1, 1)
    assert newest(history, block, 4).flatten().tolist() == [0, 0, 0, 1, 7]
    assert newest(history, block, 1).flatten().tolist() == [1, 7]
    with pytest.raises(ValueError, match="start from a picture"):
        newest(history[:, :, :0], block, 4)


def test_few_rewards_are_classes_and_many_are_two_hot_in_symlog_space():
    assert reward_classes(torch.tensor([0.0, 1.0, 0.0, -5.0])) == ("classes", (-5.0, 0.0, 1.0))
    kind, values = reward_classes(torch.linspace(-3, 100, 50))
    assert kind == "two_hot" and len(values) == 255 and values[127] == 0
    assert values[-1] == pytest.approx(np.log(101), rel=1e-5)
    with pytest.raises(ValueError, match="finite"):
        reward_classes(torch.tensor([0.0, torch.nan]))
    heads = OutcomeHeads(HeadsConfig(kind, values, **SIZES))
    rewards = torch.tensor([0.0, -2.5, 99.0, 0.013])
    target = heads.target(rewards)
    assert target.sum(dim=1).tolist() == pytest.approx([1] * 4) and (target > 0).sum(dim=1).max() <= 2
    said, confidence = heads.read(target)
    assert said.tolist() == pytest.approx(rewards.tolist(), abs=1e-3) and confidence.min() > 0.999


def test_importance_weights_undo_the_balance():
    data = recorded()
    training = HeadTraining(data, 2, Settings())
    steps, weight = training.draw(200_000, torch.Generator().manual_seed(0))
    assert weight.max() <= 2
    rewarded, ended = data.reward[steps] > 0, data.terminated[steps] > 0
    assert rewarded.float().mean() > 1.5 * (data.reward > 0).float().mean()
    assert float((weight * rewarded).mean()) == pytest.approx(float((data.reward > 0).float().mean()), rel=0.03)
    assert float((weight * ended).mean()) == pytest.approx(float(data.terminated.mean()), rel=0.03)
    again, _ = training.draw(200_000, torch.Generator().manual_seed(0))
    assert torch.equal(steps, again)


def test_thresholds_and_temperatures_in_closed_form():
    assert best_threshold(np.array([0.9, 0.4, 0.8, 0.1]), np.array([1, 0, 1, 0], bool)) == pytest.approx(0.6)
    assert recall_at(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 1], bool), 0.75) == 1
    assert recall_at(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 0, 1], bool), 0.75) == 0.5
    assert recall_at(np.array([0.9, 0.8]), np.array([0, 1], bool), 0.8) == 0
    assert np.isnan(recall_at(np.zeros(2), np.zeros(2, bool), 0.8))
    logits = 3 * torch.log(torch.tensor(0.8 / 0.2)).expand(
        10
    )  # three times too sure of what is so in eight cases of ten
    label = torch.tensor([1.0] * 8 + [0.0] * 2)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert best_temperature(lambda t: loss(logits / t, label)) == pytest.approx(3, rel=0.02)
    assert best_temperature(lambda t: torch.zeros(())) == 1


def test_heads_learn_rare_rewards_and_ends(learnt):
    figures = evaluate(learnt, recorded(seed=2))
    assert figures["positive_rewards"] > 3 and figures["negative_rewards"] == 0 and figures["terminations"] == 3
    assert figures["reward_ap_positive"] > 0.95 and figures["reward_recall_positive"] > 0.9
    assert np.isnan(figures["reward_ap_negative"])
    assert figures["termination_ap"] > 0.9 and figures["false_terminations"] < 0.02
    assert max(figures["reward_calibration"], figures["termination_calibration"]) < 0.05


def test_dense_rewards_are_learnt_two_hot(tmp_path):
    heads, _ = trained(recorded(rewards="dense"), tmp_path)
    assert heads.config.kind == "two_hot"
    figures = evaluate(calibrate(heads, recorded(seed=1, rewards="dense"), SMALL), recorded(seed=2, rewards="dense"))
    assert figures["reward_ap_positive"] > 0.9 and figures["reward_error"] < 0.3


def test_without_terminations_the_threshold_says_nothing(learnt):
    held_out = recorded(seed=1)
    heads = calibrate(learnt, dataclasses.replace(held_out, terminated=torch.zeros(held_out.steps)), SMALL)
    found = heads.config.calibration
    assert (found.termination_threshold, found.termination_temperature) == (0.5, 1.0)
    calibrate(learnt, held_out, SMALL)


def test_strange_blocks_are_out_of_distribution_and_truncate_after_three_in_a_row(learnt):
    data = recorded(seed=3)
    latents, action = latents_of(data, list(range(data.steps)))
    assert learnt.predict(latents, action).out_of_distribution.float().mean() < 0.01
    usual, strange = latents[:1], 20 * torch.randn(1, 6, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    outcome, seen = None, []
    for block in (strange, strange, usual, strange, strange, strange, strange):
        outcome = learnt.predict(block, action[:1], outcome)
        seen.append((bool(outcome.out_of_distribution), bool(outcome.truncated)))
    assert seen == [
        (True, False),
        (True, False),
        (False, False),
        (True, False),
        (True, False),
        (True, True),
        (True, True),
    ]


def test_a_distance_of_one_is_usual_whatever_the_scale():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, generator=random) * torch.tensor([1.0, 10, 0.1, 3, 1, 5]) + 7
    familiar = Familiarity(6)
    familiar.fit(features)
    assert float(familiar(features).mean()) == pytest.approx(1, abs=0.1)
    assert float(familiar(features + 100).min()) > 10
    with pytest.raises(ValueError, match="two or more"):
        familiar.fit(features[:1])


def folder_with(heads: OutcomeHeads | None, folder: Path, make_dit, make_vae) -> Path:
    tensors = {"dit.safetensors": make_dit(CONFIG).state_dict(), "vae.safetensors": make_vae(CONFIG).state_dict()}
    save_weights(folder, CONFIG, tensors, {})
    if heads is not None:
        save_heads(folder, heads)
    return folder


def test_files_give_the_same_heads_and_say_what_is_wrong(tmp_path, make_dit, make_vae):
    assert load_heads(folder_with(None, tmp_path / "none", make_dit, make_vae), CONFIG) is None
    data = recorded(channels=CONFIG.dit.latent_channels)
    heads = build_heads(CONFIG, data, Settings())
    folder = folder_with(heads, tmp_path / "some", make_dit, make_vae)
    again = load_heads(folder, CONFIG)
    assert again is not None and again.config == heads.config
    latents, action = latents_of(data, [3, 4])
    for name in ("reward", "reward_confidence", "termination_probability"):
        assert torch.equal(getattr(again.predict(latents, action), name), getattr(heads.predict(latents, action), name))
    with pytest.raises(ValueError, match="another model"):
        load_heads(folder, toy_config(4))
    (folder / "heads.json").write_text("{}")
    with pytest.raises(ValueError, match=r"heads\.json.*damaged"):
        load_heads(folder, CONFIG)
    (folder / "heads.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"heads\.json"):
        load_heads(folder, CONFIG)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "mean"}, "unknown kind"),
        ({"values": [1.0, 0.0]}, "in order"),
        ({"values": []}, "at least one"),
        ({"width": 0}, "width"),
        ({"calibration": {"termination_threshold": 1.5}}, "probability"),
        ({"colour": 1}, "colour"),
        ({"ood_patience": 3}, "no field 'ood_patience'"),
    ],
)
def test_a_bad_configuration_is_explained(changed, words):
    good = json.loads(HeadsConfig("classes", (0.0, 1.0), **SIZES).to_json())
    with pytest.raises(ValueError, match=words):
        HeadsConfig.from_json(json.dumps({**good, **changed}))


def test_wrong_shapes_are_explained(learnt):
    with pytest.raises(ValueError, match="heads read latents"):
        learnt.predict(torch.zeros(1, 6, 5, 4, 5), torch.zeros(1, 3))

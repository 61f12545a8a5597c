"""Foundation training: its loss, what it does to histories, that it learns, and that a resumed run equals an unbroken one."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scenes import state_of
from stopped import stopped_after
from torch import Tensor

from train import foundation as stage
from train.data.shards import HELD_OUT
from train.depth import load_depth
from train.engine.loop import Networks, Run
from train.engine.pool import PoolSettings
from train.evaluation.held_out import evaluate, held_out_psnr
from train.evaluation.sheet import to_video
from train.foundation import (
    Initial,
    Noise,
    Optimization,
    SelfForcing,
    Settings,
    Trainer,
    corrupt,
    flow_loss,
    optimizers,
    train,
)
from train.vae import psnr
from world_model import flow
from world_model.dit import DiT
from world_model.rollout import generator

QUICK = Settings(
    batch=2,
    noise_samples=2,
    pool=PoolSettings(3, episode_length=12),
    optimization=Optimization(warmup=2),
    self_forcing=SelfForcing(dream_from=1, dream_over=1, dream_share=0.7),
)


@pytest.fixture
def trainer(config, corpus, frozen_vae) -> Trainer:
    return Trainer(config, corpus, frozen_vae, QUICK)


# ---- the loss ---------------------------------------------------------------------------------------------------------


class Oracle:
    """A DiT that is given data and noise, and errs by `error`."""

    def __init__(
        self, prediction: str, data: Tensor, noise: Tensor, error: Tensor | float = 0.0, std: Tensor | None = None
    ) -> None:
        self.config = SimpleNamespace(dit=SimpleNamespace(output=SimpleNamespace(prediction=prediction)))
        self.answer = (data if prediction == "data" else noise - data) + error
        deviation = None if std is None else torch.stack([std, torch.zeros_like(std)])
        self.priors = [] if deviation is None else [SimpleNamespace(deviation=deviation)]
        self.seen: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, conditions: object) -> Tensor:
        self.seen = x
        return self.answer


@pytest.fixture
def sample() -> tuple[Tensor, Tensor, Tensor]:
    """data, noise [3, 2, 1, 2, 2] and three noise levels."""
    data, noise = (torch.randn(3, 2, 1, 2, 2, generator=generator(name)) for name in ("data", "noise"))
    return data, noise, torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["data", "velocity"])
def test_loss_is_zero_for_a_perfect_predictor(prediction, sample):
    data, noise, sigma = sample
    oracle = Oracle(prediction, data, noise)
    assert float(flow_loss(oracle, None, data, sigma, noise, floor=0.4)) == 0
    for row in range(3):  # it was asked at the right point between data and noise
        expected = flow.add_noise(data[row], noise[row], float(sigma[row]))
        torch.testing.assert_close(oracle.seen[row], expected)


def test_errors_weigh_as_their_noise_level_says(sample):
    data, noise, sigma = sample
    loss = flow_loss(Oracle("data", data, noise, 0.2), None, data, sigma, noise, floor=0.4)
    assert float(loss) == pytest.approx(0.04 * np.mean([1 / 1.0, 1 / 0.5, 1 / 0.4]), rel=1e-5)
    loss = flow_loss(Oracle("velocity", data, noise, 0.2), None, data, sigma, noise, floor=0.4)
    assert float(loss) == pytest.approx(0.04, rel=1e-5)


def test_errors_weigh_as_strong_as_their_channel(sample):
    data, noise, _ = sample
    one, std = torch.ones(3, dtype=torch.float64), torch.tensor([3.0, 1.0])
    for channel, weight in ((0, 1.5), (1, 0.5)):
        error = torch.zeros(3, 2, 1, 2, 2)
        error[:, channel] = 0.2
        oracle = Oracle("data", data, noise, error, std)
        loss = flow_loss(oracle, None, data, one, noise, floor=0.4)
        assert float(loss) == pytest.approx(0.04 * weight / 2, rel=1e-5)


def test_what_to_beat_is_the_loss_of_a_network_that_adds_nothing(trainer, config, make_dit):
    """A data prediction with a silent head is the linear estimate itself."""
    dit = make_dit(config)
    silent = copy.deepcopy(dit)
    for parameter in silent.head.head.parameters():
        parameter.detach().zero_()
    losses = []
    for network in (dit, silent):
        fresh = Trainer(config, trainer.corpus, trainer.vae, QUICK)
        losses.append(fresh.step(network, 0))
    assert losses[1][0].item() == pytest.approx(losses[1][1], rel=1e-5)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-6)
    assert losses[0][0].item() != pytest.approx(losses[0][1], rel=1e-3)


def test_every_noise_level_is_trained(trainer, config, make_dit, monkeypatch):
    """Low ones too, which a shifted schedule reaches last: samples come from all of (0, 1]."""
    seen = []
    drawn = stage.draw_sigma
    monkeypatch.setattr(stage, "draw_sigma", lambda *given: seen.append(drawn(*given)) or seen[-1])
    dit = make_dit(config).requires_grad_(False)
    many = Trainer(config, trainer.corpus, trainer.vae, replace(QUICK, noise_samples=300))
    for number in range(2):
        many.step(dit, number)
    sigma = torch.cat(seen)
    assert float(sigma.min()) < 0.02 and float(sigma.max()) == 1
    assert float((sigma == 1).double().mean()) == pytest.approx(QUICK.noise.pure_noise, abs=0.05)


# ---- noised histories -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(config, corpus, frozen_vae, make_dit):
    """Forty worlds."""
    return Trainer(config, corpus, frozen_vae, replace(QUICK, pool=PoolSettings(40, episode_length=12))).pool.sample(
        make_dit(config), frozen_vae, 40, 0.0, 0
    )


def test_some_histories_are_noised_and_nothing_else(batch):
    noised = corrupt(batch, Noise(noised=0.5, history_noise=0.25), generator("corrupt"))
    change = noised.worlds.history.latents - batch.worlds.history.latents
    deviation = change.flatten(1).std(dim=1)
    clean = deviation == 0
    assert 0.3 < float(clean.float().mean()) < 0.7
    assert deviation.max() < 0.27 and deviation.max() > 0.15
    moved = (noised.worlds.picture - batch.worlds.picture).flatten(1).abs().amax(dim=1)
    assert torch.equal(moved == 0, clean)  # the picture that the prior warps goes with its history
    assert noised.worlds.picture.abs().max() <= 1
    assert torch.equal(noised.truth, batch.truth) and torch.equal(noised.past.latents, batch.past.latents)
    assert torch.equal(noised.worlds.yaw, batch.worlds.yaw) and noised.worlds.memory is batch.worlds.memory


@pytest.mark.parametrize("off", [{"noised": 0.0}, {"history_noise": 0.0}])
def test_noise_can_be_switched_off(off, batch):
    same = corrupt(batch, Noise(**off), generator("corrupt"))
    assert torch.equal(same.worlds.history.latents, batch.worlds.history.latents)
    assert torch.equal(same.worlds.picture, batch.worlds.picture)


# ---- steps ------------------------------------------------------------------------------------------------------------


def test_every_part_of_the_network_learns(trainer, config, make_dit):
    dit = make_dit(config)
    for number in range(8):
        loss, _ = trainer.step(dit, number)
        assert loss.isfinite() and loss > 0
        loss.backward()
    learning = ((name, p) for name, p in dit.named_parameters() if p.requires_grad)
    silent = {name for name, p in learning if p.grad is None or not p.grad.any()}
    assert silent <= {"empty"}  # only worlds from a text reach that one


def test_clean_worlds_take_recorded_latents_and_self_generated_ones_their_own(trainer, config, corpus, make_dit):
    dit, met = make_dit(config), set()
    for number in range(2, 14):  # from step 2 on the share of dreaming worlds is at its full 0.7
        before = list(trainer.pool.entries)
        trainer.step(dit, number)
        for old, entry in zip(before, trainer.pool.entries, strict=True):
            if old is None or entry is None or entry.block == old.block:
                continue
            newest = entry.worlds.history.latents[0, :, -config.block_latents :]
            assert torch.equal(newest, entry.past.latents[0, :, -config.block_latents :])
            assert not newest.requires_grad
            assert torch.equal(newest, corpus.block(entry.trajectory, old.block)) != entry.self_generated
            assert bool(state_of(entry.worlds).doubt.any()) == entry.self_generated  # recordings have no uncertainty
            met.add(entry.self_generated)
    assert met == {True, False}


def test_no_world_is_self_generated_before_it_is_time(config, corpus, frozen_vae, make_dit):
    late = SelfForcing(dream_from=100, dream_over=1, dream_share=1.0)
    trainer = Trainer(config, corpus, frozen_vae, replace(QUICK, self_forcing=late))
    for number in (0, 50, 99):
        trainer.step(make_dit(config), number)
        assert not any(entry.self_generated for entry in trainer.pool.entries if entry is not None)


def test_a_step_depends_on_its_number_and_the_rollout_pool_alone(config, corpus, frozen_vae, make_dit):
    dit = make_dit(config)
    first = Trainer(config, corpus, frozen_vae, QUICK).step(dit, 5)[0]
    torch.manual_seed(1)
    assert torch.equal(Trainer(config, corpus, frozen_vae, QUICK).step(dit, 5)[0], first)
    assert not torch.equal(Trainer(config, corpus, frozen_vae, QUICK).step(dit, 6)[0], first)


def test_overfits_one_batch(config, corpus, frozen_vae, make_dit):
    """The same worlds, noise levels and noise again and again: the loss must fall a long way."""
    torch.manual_seed(0)
    dit = make_dit(config)
    dit.priors[0].deviation.copy_(corpus.prior_deviation(dit.priors[0], frozen_vae))
    losses, both = [], optimizers(dit, 1e-2, 0.0)
    for _ in range(40):
        loss, untrained = Trainer(config, corpus, frozen_vae, replace(QUICK, batch=3)).step(dit, 0)
        loss.backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]
    assert losses[-1] < 0.8 * untrained


# ---- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_compares_the_rollout_with_the_recording(config, corpus, frozen_vae, make_dit, trainer):
    figures, truth, video = held_out_psnr(make_dit(config), frozen_vae, corpus, trainer.conditioning, blocks=5)
    assert truth.shape == video.shape == (HELD_OUT, 3, 20, 32, 48)
    assert torch.equal(truth[1], to_video(corpus.frames(1, 3, 5)))
    assert figures["psnr/block1"] == pytest.approx(psnr(video[:, :, :4], truth[:, :, :4]))
    assert figures["psnr/rest"] == pytest.approx(psnr(video[:, :, 16:], truth[:, :, 16:]))
    start = torch.stack([corpus.picture(trajectory, 3) for trajectory in range(HELD_OUT)])
    still = psnr(start[:, :, None].expand(-1, -1, 4, -1, -1), truth[:, :, :4])
    assert figures["psnr/still_block1"] == pytest.approx(still)


def test_contact_sheet_shows_the_recording_above_the_rollout(config, corpus, frozen_vae, make_dit, trainer, tmp_path):
    dit = make_dit(config).train()
    run = Run("foundation", config, QUICK, tmp_path, Networks({"dit": dit}, [], {"dit": 0.9}))
    evaluate(run, dit, frozen_vae, corpus, trainer.conditioning, "look")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "look.png"))
    assert sheet.shape == (2 * HELD_OUT * 32, 12 * 48, 3)
    assert (sheet[:32, :48] == corpus.frames(0, 3, 1)[-1]).all()
    assert dit.training


# ---- whole runs -------------------------------------------------------------------------------------------------------


def run_state(folder: Path) -> dict[str, Tensor]:
    """All that a run is, in tensors: weights, averages, both optimizers, and the worlds of the rollout pool."""
    found = load_file(folder / "checkpoint" / "model.safetensors")

    def collect(name: str, value) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                collect(f"{name}/{key}", item)

    for name in ("custom_checkpoint_1.pkl", "optimizer.bin", "optimizer_1.bin", "pool.pt"):
        collect(name, torch.load(folder / "checkpoint" / name, weights_only=True))
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_training_resumes_exactly(config, data_folder, vae_folder, depth_folder, tmp_path, monkeypatch, capsys):
    """6 steps at once equal 3 and, from the checkpoint alone, 3 more: weights, EMA, optimizers and worlds, bit for bit."""

    def run(name: str) -> dict[str, Tensor]:
        train(config, data_folder, vae_folder, tmp_path / name, QUICK, 6, None, Initial(depth=depth_folder))
        return run_state(tmp_path / name)

    whole = run("whole")
    assert any(name.startswith("pool.pt/past") for name in whole)
    assert any(name.startswith("optimizer") and "momentum" in name for name in whole)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "Run", stopped_after(3))
        assert not equal(run("parts"), whole)
    shutil.copytree(tmp_path / "parts", tmp_path / "forgetful")
    assert equal(run("parts"), whole)

    (tmp_path / "forgetful" / "checkpoint" / "pool.pt").unlink()  # as runs of before left it
    assert not equal(run("forgetful"), whole)
    assert "holds no pool" in capsys.readouterr().out


def test_training_starts_from_given_weights(config, data_folder, vae_folder, weights_folder, tmp_path):
    train(config, data_folder, vae_folder, tmp_path, QUICK, 0, None, Initial(weights_folder))
    given, taken = (
        load_file(weights_folder / "dit.safetensors"),
        load_file(tmp_path / "checkpoint" / "model.safetensors"),
    )
    assert all(torch.equal(taken[name], value.float()) for name, value in given.items())


def test_fresh_models_begin_with_the_measured_prior_std(
    config, corpus, data_folder, vae_folder, depth_folder, frozen_vae, tmp_path
):
    train(config, data_folder, vae_folder, tmp_path, QUICK, 0, None, Initial(depth=depth_folder))
    taken, dit = load_file(tmp_path / "checkpoint" / "model.safetensors"), DiT(config)
    load_depth(dit.priors[0].depth, depth_folder)
    assert all(
        torch.equal(taken[f"priors.0.depth.{name}"], value) for name, value in dit.priors[0].depth.state_dict().items()
    )
    assert torch.equal(taken["priors.0.deviation"], corpus.prior_deviation(dit.priors[0], frozen_vae))


def test_a_warped_frame_prior_without_depths_is_refused(config, data_folder, vae_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--depth, a run of train\.depth"):
        train(config, data_folder, vae_folder, tmp_path, QUICK, 0, None)
    (tmp_path / "depth.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="depth network of this model"):
        train(config, data_folder, vae_folder, tmp_path, QUICK, 0, None, Initial(depth=tmp_path))


def test_command_line(config, data_folder, vae_folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage, "train", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(stage, "prepare_cpu", lambda: None)
    words = (
        f"foundation debug --data {data_folder} --vae {vae_folder} --out {tmp_path} --steps 5 --dream-from 7 --lr 0.01"
    )
    monkeypatch.setattr("sys.argv", words.split())
    stage.main()
    settings = Settings(self_forcing=SelfForcing(dream_from=7), optimization=Optimization(lr=0.01))
    assert given == [(config, data_folder, vae_folder, tmp_path, settings, 5, None, Initial())]

"""Adversarial distillation: what the discriminator sees, what each loss moves, and closed forms."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from expert_world import FINE, toy
from torch import nn

from train.engine.optimization import TwoTimescale
from train.generator import adversarial
from train.generator.adversarial import SEEN, AdversarialDistillation, Discriminator, preferred
from train.generator.autoencoder import Clips, fit_pca
from train.generator.autoencoder import Settings as AutoencoderSettings
from train.generator.encode import encode_recording
from train.generator.foundation import measure_residuals, read_window
from train.generator.shapes import recorded_config
from train.generator.windows import Spans, Windows
from train.recordings import Episode, EpisodeWriter, Recording, open_episodes
from world_model import flow
from world_model.action_spaces import ActionSpec
from world_model.dit import DiT
from world_model.text import build_conditioning
from world_model.vae import PatchVAE

STEPS = 10


def stripes(seed: int) -> Episode:
    """Stripes that move to the left or to the right, two pictures a step."""
    rng = np.random.default_rng(seed)
    actions, wave = rng.integers(3, size=STEPS), 120 + 100 * np.sin(np.arange(16) / 2 + rng.uniform(0, 6))
    places = np.concatenate([[0], np.repeat(actions - 1, 2).cumsum()])
    frames = np.stack([np.broadcast_to(np.roll(wave, x)[None, :, None], (16, 16, 3)) for x in places]).astype(np.uint8)
    zeros = np.zeros(STEPS, np.uint8)
    return Episode(frames, actions, np.zeros(STEPS, np.float32), zeros, zeros)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stripes")
    recording = Recording("stripes", 16, 16, 8.0, ActionSpec("discrete", (3,)), frames_per_step=2)
    with EpisodeWriter(folder, recording) as writer:
        for seed in range(2):
            writer.add(stripes(seed))
    files = open_episodes(folder)
    config = recorded_config("stripes", recording, False, "tiny")
    torch.manual_seed(0)
    vae = PatchVAE(config.vae).eval().requires_grad_(False)
    fit_pca(vae, config, Clips(files, range(2), 2), AutoencoderSettings(clips=20))
    windows = Windows(config, encode_recording(config, vae, files, range(2), build_conditioning(config)))
    dit = DiT(config)
    dit.flow.read_autoencoder(vae)
    measure_residuals(dit, windows)
    return config, vae, windows, dit


@pytest.fixture
def trainer(parts) -> AdversarialDistillation:
    config, vae, windows, dit = parts
    settings = adversarial.Settings(
        batch=3,
        pool=4,
        episode_length=4,
        updates=TwoTimescale(generator_every=1, critic_warmup=1),
        width=4,
        truth=0.0,
        text_start=0.0,
    )
    made = settings.trainer(config, windows, dit, vae)
    assert isinstance(made, AdversarialDistillation)
    return made


def test_a_clip_is_the_block_and_what_was_recorded_before_it(parts):
    _, _, windows, _ = parts
    spans = Spans(torch.tensor([1, 0]), torch.tensor([STEPS + 2, 0]), torch.tensor([3, 1]))
    clip = windows.clip(spans, 3)
    first = 1 + 2 * STEPS + 2 * 5  # row of the newest frame: the other episode, then five steps
    rows = windows.data.latents
    torch.testing.assert_close(clip[0], rows[first - 2 : first + 3].transpose(0, 1).float(), rtol=0, atol=0)
    start = rows[0].float()  # a world of one block has seen its start picture before that
    torch.testing.assert_close(clip[1][:, 0], start, rtol=0, atol=0)
    torch.testing.assert_close(clip[1][:, 1:], rows[1:5].transpose(0, 1).float(), rtol=0, atol=0)


def test_the_discriminator_sees_start_and_newest_picture_and_the_block(parts, trainer):
    config, vae, windows, dit = parts
    made = trainer.rollout(dit, 0)
    assert made.generated.shape == made.recorded.shape == (3, 3, 2 + config.block_latents, 16, 16)
    past = made.window.history.latents[:, :, -1:]
    for clip, block in ((made.generated, made.latents), (made.recorded, made.window.data)):
        # every world of a new pool has only its start picture, which is the recording's
        expected = vae.decode(torch.cat([past, block], dim=2))[0]
        torch.testing.assert_close(clip[:, :, 1:], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(clip[:, :, :1], vae.decode(past)[0], rtol=0, atol=1e-5)
    for number in (1, 2):
        made = trainer.rollout(dit, number)
    start = windows.data.latents[windows.data.still[made.spans.start]][:, :, None].float()
    torch.testing.assert_close(made.generated[:, :, :1], vae.decode(start)[0], rtol=0, atol=1e-5)
    assert made.spans.age.max() > 0 and torch.equal(made.generated[:, :, :1], made.recorded[:, :, :1])


def test_each_loss_moves_its_own_network(trainer):
    student, critic = trainer.student(), trainer.critic()
    made = trainer.rollout(student, 1)
    critic.requires_grad_(False)
    trainer.generator_loss(critic, made, 1).backward()
    assert all(p.grad is None for p in critic.parameters())
    moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"head.head.weight", "detail.leave.weight"} <= moved
    still = ("flow.", "blocks.0.", "patch_embedding_1x", "time_embedding", "action_embedding")
    assert not any(name.startswith(still) for name in moved)  # what says how frames move
    student.zero_grad()
    critic.requires_grad_(True)
    trainer.critic_loss(critic, made, 1).backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in critic.parameters())


def test_losses_of_a_discriminator_that_cannot_tell(parts, trainer):
    """All judgements equal: the relativistic loss is log 2 for both, and a constant has no gradient to punish."""

    class Same(nn.Module):
        def forward(self, clip, action):
            return [torch.full((len(clip), 4), 0.7), torch.full((len(clip), 1), -2.0)]

    _, _, _, dit = parts
    made = trainer.rollout(dit, 0)
    assert trainer.critic_loss(Same(), made, 0).item() == pytest.approx(math.log(2))
    assert trainer.generator_loss(Same(), made, 0).item() == pytest.approx(math.log(2))


def test_a_student_begins_with_the_moved_frames(trainer):
    trainer.teacher = copy.deepcopy(trainer.teacher).requires_grad_(False)
    for layer in (trainer.teacher.head.head, trainer.teacher.detail.leave):
        torch.nn.init.normal_(layer.weight)
    trainer.sigmas = flow.sigma_schedule(1, 1.0)  # from pure noise, which says nothing of the block
    student = trainer.student()
    made = trainer.rollout(student, 0)
    moved = student.flow.bounded(read_window(student, made.window).mean)
    torch.testing.assert_close(made.latents, moved, rtol=0, atol=1e-5)
    assert trainer.teacher.head.head.weight.any() and trainer.teacher.detail.leave.weight.any()
    further = copy.copy(trainer)
    further.settings = dataclasses.replace(trainer.settings, fresh=False)
    assert torch.equal(further.student().head.head.weight, trainer.teacher.head.head.weight)


def test_of_a_model_with_a_denoiser_that_one_learns(trainer):
    further = copy.copy(trainer)
    further.teacher = DiT(toy(None, FINE))
    torch.nn.init.normal_(further.teacher.denoiser.head.head.weight)
    student = further.student()
    learns = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert learns == {"denoiser", "found"}
    assert not student.denoiser.head.head.weight.any()
    further.settings = dataclasses.replace(trainer.settings, fresh=False)
    assert further.student().denoiser.head.head.weight.any()


def test_what_was_in_view_hardly_counts_where_nothing_may_be_added_there(trainer, parts):
    """The left half was in view: a loss that only the right half decides."""
    made = trainer.rollout(parts[3], 0)
    assert (made.counts == 1).all()  # a model that may add anything is judged everywhere
    output = dataclasses.replace(trainer.config.dit.output, kept_size=1)
    kept = copy.copy(trainer)
    kept.config = dataclasses.replace(trainer.config, dit=dataclasses.replace(trainer.config.dit, output=output))
    kept = kept.rollout(parts[3], 0)
    torch.testing.assert_close(kept.counts, SEEN + (1 - SEEN) * (1 - kept.visible))
    half = torch.where(torch.arange(12) < 6, SEEN, 1.0).expand(2, 1, 3, 8, -1)
    wide = dataclasses.replace(made, counts=half, generated=torch.zeros(2, 3, 5, 64, 96))
    assert [tuple(w.shape) for w in wide.weights] == [(2, 96), (2, 24), (2, 6)]
    for weight, columns in zip(wide.weights[:2], (12, 6)):
        torch.testing.assert_close(weight.view(2, -1, columns)[0, 0], half[0, 0, 0, 0, :: 12 // columns])
    better, equal = torch.zeros(2, 8, 12), torch.zeros(2, 8, 12)
    better[..., :6] = 50.0
    got = preferred([better.flatten(1)], [equal.flatten(1)], wide.weights).item()
    assert got == pytest.approx(math.log(2) / (1 + SEEN), rel=1e-3)


def test_a_discriminator_learns_to_tell_clips_apart_by_their_action():
    """A step to the right under its own action against the same clip under the other one: only the action says which is which."""
    torch.manual_seed(0)
    critic = Discriminator(2, 2, 8, (16, 16))
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    action = torch.eye(2).repeat(8, 1)
    for _ in range(60):
        picture = torch.rand(16, 3, 1, 16, 16) * 2 - 1
        moved = torch.where(action[:, :1, None, None, None] > 0, picture.roll(3, -1), picture.roll(-3, -1))
        clip = torch.cat([picture, moved], dim=2)
        real, fake = critic(clip, action), critic(clip, 1 - action)
        loss = preferred(real, fake, [torch.ones_like(at) for at in real])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_an_autoencoder_that_shrinks_time_is_refused(parts):
    config, vae, windows, dit = parts
    strided = dataclasses.replace(config, vae=dataclasses.replace(config.vae, temporal_stride=2))
    with pytest.raises(ValueError, match="temporal stride of 1, got 2"):
        adversarial.Settings().trainer(strided, windows, dit, vae)


@pytest.mark.parametrize(("size", "places"), [((16, 16), [4, 1]), ((64, 96), [96, 24, 6]), ((8, 24), [3])])
def test_a_discriminator_judges_places_of_several_sizes(size, places):
    judged = Discriminator(2, 3, 4, size)(torch.zeros(2, 3, 2, *size), torch.zeros(2, 3))
    assert [tuple(at.shape) for at in judged] == [(2, count) for count in places]


def test_a_discriminator_knows_where_on_the_screen_a_place_is():
    """One grey picture everywhere: only a learnt value per place tells its middle apart from that of another row."""
    critic = Discriminator(1, 1, 4, (64, 96)).requires_grad_(False)
    with torch.no_grad():
        critic.screen[:, :, :4] = 1.0
    judged = critic(torch.zeros(1, 3, 1, 64, 96), torch.zeros(1, 1))[0].view(8, 12)
    assert abs(judged[2, 5] - judged[6, 5]) > 1e-3
    torch.testing.assert_close(judged[2, 5], judged[2, 6])


def test_the_recorded_block_pulls_by_the_squared_distance_of_its_pictures(parts):
    config, vae, windows, dit = parts
    given = dict(
        batch=3,
        pool=4,
        episode_length=4,
        updates=TwoTimescale(generator_every=1, critic_warmup=0),
        width=4,
        text_start=0.0,
    )
    near, far = (adversarial.Settings(**given, truth=truth).trainer(config, windows, dit, vae) for truth in (0.0, 0.5))
    critic = near.critic()
    made = near.rollout(near.student(), 0)
    pull = (far.generator_loss(critic, made, 0) - near.generator_loss(critic, made, 0)).item()
    apart = (made.generated - made.recorded)[:, :, 2:].square()
    assert pull == pytest.approx(0.5 * apart.mean().item(), rel=1e-4)
    # of a place that counts alone, its own pixels
    corner = torch.zeros_like(made.counts)
    corner[..., 0, 0] = 1
    alone = dataclasses.replace(made, counts=corner)
    pull = (far.generator_loss(critic, alone, 0) - near.generator_loss(critic, alone, 0)).item()
    assert pull == pytest.approx(0.5 * apart[..., :8, :8].mean().item(), rel=1e-3)


def test_a_text_start_has_no_past_and_the_caption(parts):
    _, _, windows, _ = parts
    spans = Spans(torch.tensor([1, 0]), torch.tensor([STEPS, 0]), torch.tensor([3, 1]))
    stream = torch.Generator().manual_seed(0)
    texts = torch.arange(6.0).view(2, 3, 1).half()
    told = dataclasses.replace(windows.data.event_texts, tokens=texts, episode=torch.tensor([0, 1]))
    data = dataclasses.replace(windows.data, event_texts=told)
    described = copy.copy(windows)
    described.data = data
    window = dataclasses.replace(windows.truth(spans, stream), context=torch.full((2, 5, 1), 9.0))
    begun = described.from_text(window, spans, torch.tensor([True, False]))
    assert begun.history.has_past.tolist() == [False, True]
    assert not begun.past.present[0].any() and torch.equal(begun.past.present[1], window.past.present[1])
    assert begun.context[:, :, 0].tolist() == [[3, 4, 5, 9, 9], [9, 9, 9, 9, 9]]
    assert torch.equal(begun.data, window.data) and window.history.has_past.all()


def test_text_starts_leave_the_pool_to_go_on_from_its_pictures(parts):
    """The block of a text start is judged beside nothing that came before; the pool keeps the recorded block in its stead."""
    config, vae, windows, dit = parts
    settings = adversarial.Settings(
        batch=4,
        pool=4,
        episode_length=4,
        updates=TwoTimescale(generator_every=1, critic_warmup=0),
        width=4,
        text_start=1.0,
    )
    trainer = settings.trainer(config, windows, dit, vae)
    made = trainer.rollout(trainer.student(), 0)
    assert not made.window.history.has_past.any()
    nothing = vae.decode(torch.zeros_like(made.latents[:, :, :1]))[0]
    for clip in (made.generated, made.recorded):
        torch.testing.assert_close(clip[:, :, :2], nothing.expand(-1, -1, 2, -1, -1), rtol=0, atol=1e-5)
    kept = trainer.pool.latents[:, 1 : 1 + config.block_latents].float()
    lived = trainer.pool.age > 0
    for row in lived.nonzero()[:, 0]:
        assert any(torch.equal(kept[row], block.transpose(0, 1).half().float()) for block in made.window.data)
    later = trainer.rollout(trainer.student(), 1)
    assert later.window.history.has_past[later.spans.age > 0].all()

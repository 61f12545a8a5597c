"""Learns a recorded world: `python -m train.world --data data/breakout --out runs/breakout [--minutes 60] [--size small]`.

One command runs all stages: autoencoder, foundation (flow matching of the next block), distillation (Self-Forcing with
distribution matching; only with `--distill`) and the heads for reward and termination. `--out` is then a folder of weights:

    gymnasium.make("YumeWorld-v0", model="runs/breakout")
    python examples/human_play.py --model runs/breakout
    python -m train.evaluate runs/breakout

A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from train.engine.loop import prepare_cpu
from train.engine.optimization import optimizers
from train.engine.precision import has_fast_bfloat16
from train.generator import autoencoder, distill, foundation, heads, sampler_steps
from train.generator.autoencoder import Clips, fit_pca
from train.generator.encode import encode_recording
from train.generator.fit import Budget, Stage
from train.generator.known import fit_known
from train.generator.rollouts import RecordedWorld, split_episodes
from train.generator.shapes import SIZES, recorded_config
from train.generator.windows import LatentSet, Windows
from train.recordings import open_episodes
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.heads import save_heads
from world_model.known import save_known
from world_model.text import Conditioning, build_conditioning
from world_model.vae import PatchVAE
from world_model.weights import save_weights

STARTS = 16  # starting pictures


@dataclass(frozen=True)
class Recipe:
    """Numbers of all stages, their shares of the minutes, and the most steps of a stage where minutes alone do not end it."""

    autoencoder: autoencoder.Settings = autoencoder.Settings()
    foundation: foundation.Settings = foundation.Settings()
    distill: distill.Settings = distill.Settings()
    heads: heads.Settings = heads.Settings()
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"autoencoder": 0.08, "foundation": 0.77, "distill": 0.0, "heads": 0.15}
    )
    steps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    minutes: float = 60.0
    size: str = "small"
    flow: bool = True  # whether earlier pictures are moved, four of them (world_model/appearance_flow.py)
    device: str = "auto"
    compile: bool = False
    seed: int = 0

    @property
    def torch_device(self) -> torch.device:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(found if self.device == "auto" else self.device)


class WorldTraining:
    """All stages over one recording; what each leaves is the next one's beginning."""

    def __init__(
        self,
        data: Path,
        out: Path,
        settings: Settings,
        recipe: Recipe = Recipe(),
        bar: tqdm | None = None,
        config: ModelConfig | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        self.files, self.out, self.settings, self.recipe, self.bar = open_episodes(data), out, settings, recipe, bar
        self.held_out, self.episodes = split_episodes(self.files)
        self.config = config or recorded_config(
            out.name, self.files.recording, self.files.has_text, settings.size, settings.flow
        )
        check_run(out, self.config)
        (out / "recording.json").write_text(
            json.dumps({"data": str(data.resolve()), "held_out": self.held_out, "train": self.episodes})
        )
        torch.manual_seed(settings.seed)
        self.device = settings.torch_device
        self.conditioning = conditioning or build_conditioning(self.config)
        self.steps: dict[str, int] = {}
        self.earlier: list[dict[str, Any]] = []  # training of the weights that this one goes on from
        self.remarks: dict[str, Any] = {}  # what else the manifest says of this training

    def all(self) -> None:
        """Every stage in order; weights are written as soon as there are any."""
        self.vae = self.autoencoder()
        data = encode_recording(self.config, self.vae, self.files, self.episodes, self.conditioning, self.device)
        teacher = self.foundation(data)
        self.export(self.vae, teacher)
        self.generator = teacher
        if self.recipe.shares["distill"]:
            self.generator = self.distilled(data, teacher)
            self.export(self.vae, self.generator)
        self.sampler_steps()
        self.heads(data)
        save_known(
            self.out, fit_known(self.config, self.vae, self.files, self.episodes, self.conditioning, self.device)
        )

    def autoencoder(self) -> PatchVAE:
        """Stage 1: PCA encoder at once, then the decoder's convolutions."""
        s = replace(self.recipe.autoencoder, seed=self.settings.seed)
        clips = Clips(self.files, self.episodes, (s.latent_frames + 1) * self.config.vae.temporal_stride)
        vae = PatchVAE(self.config.vae)
        pair = Clips(self.files, self.episodes, 2 * self.config.vae.temporal_stride)
        fit_pca(vae, self.config, pair, s)
        vae.to(self.device)
        optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], lr=s.lr, betas=(0.9, 0.95))
        stage = self.stage("autoencoder", {"vae": vae}, {"vae": [optimizer]}, {"vae": s.ema}, s.cooldown)

        def step(number: int, done: float) -> dict[str, Tensor]:
            video = clips.draw(s.batch, np.random.default_rng((s.seed, 1, number))).to(self.device)
            shape = (s.batch, self.config.vae.latent_channels, s.latent_frames, *self.config.latent_size)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(self.device)
            loss = autoencoder.decoder_loss(vae, self.config, video, s, noise)
            stage.update("vae", loss)
            return {"loss": loss}

        self.run(stage, step)
        return stage.averaged("vae").eval().requires_grad_(False)  # type: ignore[return-value]

    def foundation(self, data: LatentSet) -> DiT:
        """Stage 2: flow matching of the next block."""
        s = replace(self.recipe.foundation, seed=self.settings.seed)
        dit, windows = self.network(), Windows(self.config, data)
        foundation.measure_residuals(dit, windows)
        trainer = foundation.Foundation(self.config, windows, s)
        opt = s.optimization
        both = optimizers(dit, opt.lr, opt.weight_decay, opt.optimizer)
        stage = self.stage(
            "foundation", {"dit": dit}, {"dit": both}, {"dit": s.ema}, opt.cooldown, {"pool": trainer.pool}, opt.warmup
        )
        if self.earlier or stage.step:  # a network that knows ways already
            with self.autocast():
                foundation.add_up_travel(dit, windows, range(len(data.first)))
        compute = self.compiled(dit)

        def step(number: int, done: float) -> dict[str, Tensor]:
            self.between_steps(stage, windows)
            with self.autocast():
                loss, unexplained = trainer.loss(compute, number, done)
            stage.update("dit", loss)
            return {"loss": loss, "unexplained": unexplained}

        self.run(stage, step)
        return stage.averaged("dit").eval().requires_grad_(False)  # type: ignore[return-value]

    def distilled(self, data: LatentSet, teacher: DiT) -> DiT:
        """Stage 3: a generator of few steps, on its own rollouts."""
        s = replace(self.recipe.distill, seed=self.settings.seed)
        windows = Windows(self.config, data)
        trainer = s.trainer(self.config, windows, teacher, self.vae)
        student = trainer.student().train()
        critic = trainer.critic().train().requires_grad_(True).to(self.device)
        adam = {
            name: [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.0, 0.999), weight_decay=0.0)]
            for name, model, lr in (("dit", student, s.updates.generator_lr), ("critic", critic, s.updates.critic_lr))
        }
        stage = self.stage(
            "distill", {"dit": student, "critic": critic}, adam, {"dit": s.ema}, s.cooldown, {"pool": trainer.pool}
        )
        own = self.compiled(student)
        score = self.compiled(critic) if isinstance(critic, DiT) else critic

        def step(number: int, done: float) -> dict[str, Tensor]:
            self.between_steps(stage, windows)
            with self.autocast():
                made = trainer.rollout(own, number)
                losses = {"critic": trainer.critic_loss(score, made, number)}
                if trainer.learns(number):
                    score.requires_grad_(False)
                    losses["generator"] = trainer.generator_loss(score, made, number)
                    score.requires_grad_(True)
            if "generator" in losses:
                stage.update("dit", losses["generator"])
            stage.update("critic", losses["critic"])
            return losses

        self.run(stage, step)
        return stage.averaged("dit").eval().requires_grad_(False)  # type: ignore[return-value]

    def sampler_steps(self) -> None:
        """As many as make rollouts most like the recording. Warns where these say that the world is of no use."""
        world = RecordedWorld(self.config, self.generator, self.vae, self.conditioning)
        best, still, found = sampler_steps.choose(world, self.files, self.episodes, self.settings.seed)
        if best.psnr < still:
            tqdm.write(
                f"This world is worse than a picture that never changes: rollouts have {best.psnr:.1f} dB, the start picture has "
                f"{still:.1f}. More --minutes may help, or {'--no-flow' if self.settings.flow else '--flow'}."
            )
        sampler = replace(self.config.sampler, steps=best.steps)
        self.config, self.remarks = replace(self.config, sampler=sampler), {**self.remarks, "sampler_steps": found}
        self.export(self.vae, self.generator)

    def heads(self, data: LatentSet) -> None:
        """Stage 4: reward and termination, where the recording has any; calibrated on the held-out episodes."""
        if len(data.reward.unique()) == 1 and not data.terminated.any():
            return
        s = replace(self.recipe.heads, seed=self.settings.seed)
        trainer = heads.HeadTraining(data, self.config.block_latents, s)
        network = heads.build_heads(self.config, data, s)
        optimizer = torch.optim.AdamW(network.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        stage = self.stage("heads", {"heads": network}, {"heads": [optimizer]}, {"heads": s.ema}, 0.3)
        self.run(stage, trainer.step(stage))
        final: heads.OutcomeHeads = stage.averaged("heads").eval().requires_grad_(False)  # type: ignore[assignment]
        heads.fit_familiarity(final, trainer)
        held_out = encode_recording(self.config, self.vae, self.files, self.held_out, self.conditioning, self.device)
        heads.calibrate(final, held_out, s)
        save_heads(self.out, final)
        (self.out / "stages" / "heads" / "held_out.json").write_text(
            json.dumps(heads.evaluate(final, held_out), indent=1)
        )

    def export(self, vae: PatchVAE, dit: DiT) -> None:
        """Writes the folder that `WorldModel.load` reads."""
        strip = np.concatenate([self.files.frames(e, 0, 1)[0] for e in self.episodes[:STARTS]])
        Image.fromarray(strip).save(self.out / "starts.png")
        tensors = {"dit.safetensors": dit.state_dict(), "vae.safetensors": vae.state_dict()}
        if self.config.action.kind == "first_person":
            tensors["text.safetensors"] = {"actions": self.conditioning.actions}
        training = {"stages": self.steps, "minutes": self.settings.minutes, "episodes": len(self.episodes)}
        training |= self.remarks
        save_weights(self.out, self.config, tensors, {"training": [*self.earlier, training]})

    def network(self) -> DiT:
        """The generator that the foundation stage begins with."""
        dit = DiT(self.config)
        if dit.flow is not None:
            dit.flow.read_autoencoder(self.vae)
        return dit.to(self.device)

    def between_steps(self, stage: Stage, windows: Windows) -> None:
        """Called before every step of the foundation stage."""

    # ---- what stages share ----------------------------------------------------------------------------------------------

    def stage(self, name, models, optimizers, averaged, cooldown, kept=None, warmup=50) -> Stage:
        budget = Budget(self.recipe.shares[name] * self.settings.minutes, warmup=warmup, cooldown=max(cooldown, 1e-9))
        if name in self.recipe.steps:
            budget = replace(budget, steps=self.recipe.steps[name], warmup=10)
        return Stage(name, self.out / "stages" / name, budget, models, optimizers, averaged, kept)

    def run(self, stage: Stage, step: Callable[[int, float], dict[str, Tensor]]) -> None:
        if self.bar is not None:
            self.bar.update(min(stage.seconds, self.bar.total - self.bar.n))
        stage.run(step, self.bar)
        self.steps[stage.name] = stage.step

    def compiled(self, dit: DiT) -> DiT:
        """The same network, its layers compiled if asked for: all have one shape, so one graph serves them."""
        if self.settings.compile:
            for layer in dit.layers:
                layer.compile(dynamic=False)
        return dit

    def autocast(self) -> torch.autocast:
        """bfloat16 where that is faster than float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_fast_bfloat16(self.device))


def check_run(out: Path, config: ModelConfig) -> None:
    """Makes the folder, or raises ValueError where it holds the run of another model."""
    path = out / "stages" / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and replace(ModelConfig.from_json(path.read_text()), name="") != replace(config, name=""):
        raise ValueError(f"{out} holds a run of another model or recording: use another folder, or delete that one")
    path.write_text(config.to_json())


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that train.record wrote")
    parser.add_argument("--out", type=Path, required=True, help="run folder; a stopped run in it goes on")
    parser.add_argument("--minutes", type=float, default=Settings.minutes, help="training time of all stages together")
    parser.add_argument("--size", choices=sorted(SIZES), default=Settings.size)
    parser.add_argument(
        "--flow",
        action=argparse.BooleanOptionalAction,
        default=Settings.flow,
        help="move four earlier pictures by learnt displacements, else none: for pictures that scroll or turn",
    )
    parser.add_argument("--device", default=Settings.device, help="auto, cpu, cuda ...")
    parser.add_argument(
        "--distill",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the minutes for distillation, taken from the foundation; minutes of a CPU made it worse (docs/worlds.md)",
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers: worth a minute on a GPU")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    given = vars(parser.parse_args())
    data, out, share = given.pop("data"), given.pop("out"), given.pop("distill")
    shares = Recipe().shares
    if not 0 <= share < shares["foundation"]:
        parser.error(f"--distill must be a share of at least 0 and below {shares['foundation']}, got {share}")
    recipe = Recipe(shares={**shares, "foundation": shares["foundation"] - share, "distill": share})
    settings = Settings(**given)
    try:
        with tqdm(total=60 * settings.minutes, unit="s", desc=out.name, dynamic_ncols=True) as bar:
            WorldTraining(data, out, settings, recipe, bar).all()
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f'gymnasium.make("YumeWorld-v0", model="{out}")')


if __name__ == "__main__":
    main()

"""Trains the generator of the street within a few minutes of a GPU, or anywhere: rendering, all stages of train.world, and a sheet.

    python -m train.street_world texts --out runs/texts.safetensors         once, where the text encoder is installed
    python -m train.street_world train --out OUT --minutes 9 --workers 14 --texts runs/texts.safetensors --compile
    python -m train.street_world train --out OUT --minutes 2 --towns 2 --size tiny                a trial on a CPU

Episodes of the training towns are rendered by `--workers` processes while training goes on; what is there is read every minute.
With `--initial` training goes on from the weights of an earlier run: its autoencoder is kept, since latents must not change.
Weights are written every minute in parts of at most 15 MiB, so that a run that is cut off leaves its last ones.
The log has worlds a second, and the share of the card's peak if `--peak` says what that is in TFLOP/s.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from train.engine.loop import prepare_cpu
from train.engine.optimization import Optimization
from train.generator import adversarial, distill, foundation
from train.generator.encode import encode_recording
from train.generator.fit import Stage
from train.generator.handed_on import learn_only, taken_over, write_parts
from train.generator.shapes import SIZES, recorded_config
from train.generator.sheet import save_rollouts
from train.generator.windows import LatentSet, Spans, Windows
from train.recordings import RecordingError, open_episodes, read_recording
from train.street.episodes import render_episodes
from train.street.text_table import TextTable, write_texts
from train.street.towns import TRAINING_TOWNS, VALIDATION_TOWNS
from train.world import Recipe, Settings, WorldTraining
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.presets import get_preset
from world_model.text import Conditioning
from world_model.vae import PatchVAE
from world_model.weights import load_dit, load_into, read_config, read_manifest

LOOK_EVERY = 60.0  # seconds between looks at what has been rendered, and between copies of the weights
BLOCKS = 32  # of an episode
SHEET_TOWNS, SHEET_BLOCKS = 6, (1, 2, 4, 8, 12, 20, 30)
GPU = Recipe(
    foundation=foundation.Settings(
        batch=160,
        longest=BLOCKS,
        optimization=Optimization(warmup=200),
        self_generated=foundation.SelfGenerated(begin=0.5),
    ),
    distill=distill.Settings(batch=64, pool=256, episode_length=BLOCKS, guidance=2.0),
    shares={"autoencoder": 0.1, "foundation": 0.6, "distill": 0.3},
)
CPU = Recipe(
    foundation=foundation.Settings(
        batch=24,
        noise_samples=1,
        longest=BLOCKS,
        self_generated=foundation.SelfGenerated(begin=1.0, share=0.0, steps=1),
    ),
    distill=distill.Settings(episode_length=BLOCKS),
    shares={"autoencoder": 0.07, "foundation": 0.93, "distill": 0.0},
)


class StreetTraining(WorldTraining):
    """`WorldTraining` of episodes that are still being rendered."""

    def __init__(
        self, *args, initial: Path | None = None, peak: float = 0.0, learn: Sequence[str] = (), **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.initial, self.peak, self.learn = initial, peak, learn
        self.remarks = {"learn": list(learn)} if learn else {}
        self.earlier = [] if initial is None else read_manifest(initial)["training"]
        self.looked = time.monotonic()
        self.flops = 0

    def autoencoder(self) -> PatchVAE:
        return super().autoencoder() if self.initial is None else self._given_autoencoder(self.initial)

    def network(self) -> DiT:
        dit = super().network()
        if self.initial is not None:
            load_dit(dit, self.initial, adapt=lambda tensors: taken_over(dit, tensors))
            if dit.flow is not None:  # earlier weights may hold a decoder that does not invert their encoder
                dit.flow.read_autoencoder(self.vae)
        if dit.expert is not None:
            dit.expert.requires_grad_(False)
        if self.learn:
            learn_only(dit, self.learn)
        return dit

    def between_steps(self, stage: Stage, windows: Windows) -> None:
        """Reads what was rendered since, and leaves a copy of the weights."""
        if time.monotonic() - self.looked < LOOK_EVERY:
            return
        self.looked = time.monotonic()
        self.report(stage)
        known = set(self.held_out) | set(self.episodes)
        self.files = open_episodes(self.files.folder)
        new = [episode for episode in range(len(self.files)) if episode not in known]
        if new:
            more = encode_recording(self.config, self.vae, self.files, new, self.conditioning, self.device)
            windows.data = windows.data.extended(more)
            self.episodes += new
            dit: DiT = stage.models["dit"]  # type: ignore[assignment]
            foundation.add_up_travel(dit, windows, range(len(self.episodes) - len(new), len(self.episodes)))
        self.steps[stage.name] = stage.step
        self.export(self.vae, stage.averaged("dit"))  # type: ignore[arg-type]
        write_parts(self.out)

    def report(self, stage: Stage) -> None:
        """Logs worlds a second and, if the card's peak is known, the share of it that is used."""
        worlds = stage.step * self.recipe.foundation.batch / max(stage.seconds, 1e-9)
        line = f"{len(self.episodes)} episodes, step {stage.step}, {worlds:.0f} worlds a second"
        if self.flops and self.peak:
            line += f", {worlds / self.recipe.foundation.batch * self.flops / self.peak / 1e12:.1%} of {self.peak:.0f} TFLOP/s"
        tqdm.write(line)

    def foundation(self, data: LatentSet) -> DiT:
        if self.peak:
            self.flops = step_flops(self, data)
        return super().foundation(data)

    def sampler_steps(self) -> None:
        """Those of its shape: what was never in view takes more than rollouts of seconds say."""

    def _given_autoencoder(self, folder: Path) -> PatchVAE:
        vae = PatchVAE(self.config.vae)
        load_into(vae, folder, "vae.safetensors")
        return vae.eval().requires_grad_(False).to(self.device)


def step_flops(training: WorldTraining, data: LatentSet) -> int:
    """Floating-point operations of one foundation step, counted by running it."""
    dit, windows = DiT(training.config).to(training.device), Windows(training.config, data)
    trainer = foundation.Foundation(training.config, windows, training.recipe.foundation)
    with FlopCounterMode(display=False) as counter, training.autocast():
        trainer.loss(dit, 0, 0.0)[0].backward()
    return counter.get_total_flops()


def wait_for(folder: Path, episodes: int, renderer: subprocess.Popen) -> Iterator[int]:
    """Yields how many episodes there are until there are enough. Raises RecordingError if the renderer ends before that."""
    while True:
        try:
            count = len(open_episodes(folder))
        except RecordingError:
            count = 0
        yield count
        if count >= episodes:
            return
        if renderer.poll() not in (None, 0):
            raise RecordingError(
                f"rendering into {folder} ended with exit code {renderer.returncode} after {count} episodes"
            )
        time.sleep(0.5)


def planned(
    recipe: Recipe,
    discriminator: float,
    initial: ModelConfig | None,
    further: bool = False,
    cooldown: float | None = None,
) -> Recipe:
    """A recipe without the autoencoder's minutes where that is given, and with a share `discriminator` of all minutes for
    adversarial distillation instead of another, if above 0; `further`, of the `initial` weights' own student. The foundation gets
    the rest. Where the `initial` model has an expert, worlds begun from a text are not the student's. Learning rates of the
    foundation fall over its last share `cooldown`, if that is given."""
    if cooldown is not None:
        optimization = dataclasses.replace(recipe.foundation.optimization, cooldown=cooldown)
        recipe = dataclasses.replace(
            recipe, foundation=dataclasses.replace(recipe.foundation, optimization=optimization)
        )
    autoencoder = recipe.shares["autoencoder"] if initial is None else 0.0
    distilled = discriminator or recipe.shares["distill"]
    if discriminator:
        own = adversarial.Settings(batch=24, pool=96, episode_length=64, fresh=not further)
        if initial is not None and initial.dit.expert is not None:
            own = dataclasses.replace(own, text_start=0.0)
        recipe = dataclasses.replace(recipe, distill=own)
    foundation_share = max(0.0, 1 - autoencoder - distilled)
    shares = {"autoencoder": autoencoder, "foundation": foundation_share, "distill": distilled}
    return dataclasses.replace(recipe, shares=shares)


def train(
    out: Path,
    settings: Settings,
    towns: int,
    workers: int,
    texts: Path | None,
    initial: Path | None,
    recording: Path | None,
    peak: float,
    discriminator: float = 0.0,
    learn: Sequence[str] = (),
    further: bool = False,
    cooldown: float | None = None,
) -> None:
    """Everything within `settings.minutes`, beginning with the first rendered frame."""
    began = time.monotonic()
    data = recording or out / "data"
    command = [sys.executable, "-m", "train.data", "street", "episodes", "--out", str(data), "--towns", str(towns)]
    command += ["--first-town", str(TRAINING_TOWNS.start), "--blocks", str(BLOCKS), "--workers", str(workers)]
    out.mkdir(parents=True, exist_ok=True)
    with nullcontext() if recording else subprocess.Popen(command) as renderer:
        try:
            for _ in wait_for(data, min(2 * towns, 4 * max(workers, 1)), renderer) if renderer else ():
                pass
            table = TextTable(texts) if texts is not None else None
            shape = recorded_config("street-generator", read_recording(data), True, settings.size)
            earlier = None if initial is None else read_config(initial)
            if earlier is not None:  # what sees the noise, and an expert for texts
                own = {name: getattr(earlier.dit, name) for name in ("layers", "denoiser", "expert")}
                shape = dataclasses.replace(shape, dit=dataclasses.replace(shape.dit, **own))
            conditioning = Conditioning(shape.text, table.actions if table else None, table)
            left = settings.minutes - (time.monotonic() - began) / 60
            on_gpu = settings.torch_device.type == "cuda"
            recipe = planned(GPU if on_gpu else CPU, discriminator, earlier, further, cooldown)
            if not on_gpu:  # a CPU's minutes teach the mean of a block well, and samples of it badly
                shape = dataclasses.replace(shape, sampler=dataclasses.replace(shape.sampler, steps=1, start_steps=1))
            with tqdm(total=60 * left, unit="s", desc=out.name, mininterval=10) as bar:
                training = StreetTraining(
                    data,
                    out,
                    dataclasses.replace(settings, minutes=left),
                    recipe,
                    bar,
                    shape,
                    conditioning,
                    initial=initial,
                    peak=peak,
                    learn=learn,
                )
                training.all()
            write_parts(out)
            validation_sheet(out, training)
        finally:
            if renderer:
                renderer.terminate()


def validation_sheet(out: Path, training: StreetTraining) -> None:
    """sheet.png: rollouts in towns that nothing is trained on, below what was recorded there."""
    folder = out / "validation"
    render_episodes(
        get_preset("street"),
        folder,
        towns=SHEET_TOWNS,
        episodes_per_town=1,
        blocks=BLOCKS,
        first_town=VALIDATION_TOWNS.start,
    )
    files = open_episodes(folder)
    data = encode_recording(
        training.config, training.vae, files, range(len(files)), training.conditioning, training.device
    )
    episodes = torch.arange(len(files), device=training.device)
    spans = Spans(episodes, data.begin[:-1], torch.zeros_like(episodes))
    save_rollouts(out / "sheet.png", training.config, training.generator, training.vae, data, spans, SHEET_BLOCKS)


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("texts", "train"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--towns", type=int, default=len(TRAINING_TOWNS))
        if name == "texts":
            command.add_argument(
                "--data", type=Path, nargs="+", default=(), help="recordings whose captions are held, too"
            )
    command.add_argument("--minutes", type=float, default=9.0)
    command.add_argument("--size", choices=sorted(SIZES), default="large")
    command.add_argument("--workers", type=int, default=1, help="processes that render")
    command.add_argument("--texts", type=Path, help="file of encoded texts, where the text encoder is not installed")
    command.add_argument("--initial", type=Path, help="folder of weights to go on from")
    command.add_argument(
        "--recording", type=Path, help="folder of episodes; without it they are rendered into OUT/data"
    )
    command.add_argument(
        "--learn",
        nargs="+",
        default=(),
        metavar="PART",
        help="parts that the foundation teaches, as flow.tone; else all",
    )
    command.add_argument("--peak", type=float, default=0.0, help="the card's bfloat16 peak, TFLOP/s")
    command.add_argument(
        "--discriminator",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the minutes for adversarial distillation, instead of distribution matching by two scores",
    )
    command.add_argument(
        "--further",
        action="store_true",
        help="the discriminator teaches the student of the initial weights, instead of one that begins with moved frames alone",
    )
    command.add_argument(
        "--cooldown",
        type=float,
        metavar="SHARE",
        help="last share of the foundation over which learning rates fall; 1 where little is to be changed",
    )
    command.add_argument("--compile", action="store_true", help="compile the layers")
    given = vars(parser.parse_args())
    if given.pop("command") == "texts":
        count = write_texts(given["out"], given["towns"], SHEET_TOWNS, BLOCKS, recordings=given["data"])
        print(f"{count} texts in {given['out']}")
        return
    most = 1.0 if given["initial"] else 0.8
    if not 0 <= given["discriminator"] <= most:
        parser.error(f"--discriminator must be a share of 0 to {most}, got {given['discriminator']}")
    if given["cooldown"] is not None and not 0 < given["cooldown"] <= 1:
        parser.error(f"--cooldown must be a share above 0 and at most 1, got {given['cooldown']}")
    if given["further"] and not (given["initial"] and given["discriminator"]):
        parser.error("--further needs --initial WEIGHTS and a share for --discriminator")
    if given["recording"] is not None:
        try:
            read_recording(given["recording"])
        except RecordingError as error:
            parser.error(f"--recording: {error}")
    settings = Settings(minutes=given.pop("minutes"), size=given.pop("size"), compile=given.pop("compile"))
    train(settings=settings, **given)


if __name__ == "__main__":
    main()

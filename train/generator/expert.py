"""Teaches the expert for texts (world_model/denoiser.py) beside a generator that is trained already:

    python -m train.generator.expert --initial FOLDER --data RECORDING [MORE ...] --out RUN --minutes 60

FOLDER holds the generator's weights; nothing of it changes. The expert learns by flow matching from three kinds of blocks: first
pictures of episodes standing still, told the caption, with no past; blocks after a change of a text, and any others, from frames
that the generator moved. For most of those after a change the generator moves frames from before it: what an event brings is
drawn, not found. Of others only what is not in view counts. Moved frames are computed once, before training. Half of all blocks are
mirrored. RUN is a folder of weights; a stopped run goes on. An expert of FOLDER of the same shape is taught further.

Shapes: B worlds, C latent channels, K latent frames of a block, h x w latent size.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from train.engine.loop import prepare_cpu
from train.engine.optimization import optimizers
from train.engine.precision import has_fast_bfloat16
from train.engine.variants import fitting
from train.generator.encode import encode_recording
from train.generator.fit import Budget, Stage
from train.generator.foundation import draw_sigma, variance_left
from train.generator.handed_on import write_parts
from train.generator.moved_blocks import MovedBlocks, moved_blocks, told_before
from train.generator.rollouts import split_episodes
from train.generator.windows import LatentSet, Windows
from train.recordings import open_episodes
from train.street.text_table import TextTable
from world_model import flow
from world_model.config import ExpertConfig
from world_model.denoiser import Denoiser
from world_model.dit import DiT
from world_model.memory import UNCHANGED
from world_model.text import Conditioning, build_conditioning, mean_token
from world_model.vae import build_vae
from world_model.weights import (
    dit_tensors,
    find_weights,
    load_dit,
    load_into,
    read_captions,
    read_config,
    save_with_other_dit,
)

LEAST_HIDDEN = 0.05  # share of the places of a batch


@dataclass(frozen=True)
class Settings:
    """Numbers of this training."""

    batch: int = 16
    started: float = 0.4  # share of text starts
    changed: float = 0.5  # share of blocks after a change of text; the others are any
    described: float = 0.3  # share of worlds that are told the caption where they are told of no event
    dropout: float = 0.1  # share of worlds that are told nothing, for guidance
    colour: float = 0.3  # largest deviation of colours, and of contrast, by which some moved frames are wrong
    drifted: float = 0.3  # share of these
    pure: float = 0.25  # share of draws at noise level 1
    mirrored: float = 0.5
    captioned: int = 1  # first blocks of an episode: what its caption says is true before each
    begun: int = 4_500  # blocks after the begin of a text of which moved frames are kept
    ended: int = 1_500  # the same after its end
    others: int = 1_000  # the same of others
    unheard: float = 0.6  # share of blocks after a change whose frames are moved from before it
    lr: float = 2e-3
    weight_decay: float = 0.01
    ema: float = 0.999
    cooldown: float = 0.3
    seed: int = 0


GPU = Settings(batch=192, begun=24_000, ended=6_000, others=6_000)


class ExpertTraining:
    """Batches, and the loss on them. `dit` is the trained generator, `windows` its recording."""

    def __init__(
        self, dit: DiT, windows: Windows, settings: Settings, expert: ExpertConfig, kept: Path | None = None
    ) -> None:
        """With `kept`, a file, moved frames are taken from there, or written there if it is missing."""
        self.windows, self.settings, self.shift = windows, settings, expert.shift
        data = windows.data
        assert dit.flow is not None
        self.flow = dit.flow
        rows, ago = told_before(data.event_texts.step, data.begin)
        self.since, self.before = ago[:, 0], rows[:, 1]
        number = torch.arange(data.steps, device=data.begin.device)
        block = number - data.begin[torch.searchsorted(data.begin, number, right=True) - 1]
        self.starts = ((data.event_texts.step == 0) & (block < settings.captioned)).nonzero()[:, 0]
        # how much pixels differ by a channel: what is coarse counts more than each of many details
        differ = self.flow.decode.norm(dim=0)
        self.counts = (differ / differ.mean())[:, None, None, None]
        recent = self.since < expert.blocks
        stream = torch.Generator(recent.device).manual_seed(settings.seed)

        def some(chosen: Tensor, most: int) -> Tensor:
            steps = chosen.nonzero()[:, 0]
            return steps[torch.randperm(len(steps), generator=stream, device=steps.device)[:most]]

        told = data.event_texts.step > 0
        changed = torch.cat([some(recent & told, settings.begun), some(recent & ~told, settings.ended)])
        steps = torch.cat([changed, some(~recent, settings.others)])
        self.changes = len(changed)
        missed = torch.rand(len(steps), generator=stream, device=steps.device) < settings.unheard
        shares = [settings.started, settings.changed, 1 - settings.started - settings.changed]
        self.shares = torch.tensor(shares, device=data.latents.device)
        if kept is not None and kept.is_file():
            self.moved = MovedBlocks(**torch.load(kept, weights_only=True, map_location=data.latents.device))
        else:
            unheard = self.since[steps] * (missed & recent[steps])
            self.moved = moved_blocks(dit, windows, steps, settings.seed, unheard)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save(vars(self.moved), kept.with_suffix(".unfinished"))
                kept.with_suffix(".unfinished").replace(kept)

    def measure(self, expert: Denoiser) -> None:
        """Sets the deviations of the data about where a prediction starts."""
        stills = self.windows.data.latents[self.windows.data.still[self.starts[:1000]]].float()
        expert.deviation[0] = stills.square().mean(dim=(0, 2, 3)).sqrt()[None]
        residual = self.moved.data[::3].float() - self.moved.mean[::3].float()
        expert.deviation[1] = residual.square().mean(dim=(0, 3, 4)).sqrt().T
        if expert.amplitude is not None:
            expert.amplitude[:] = torch.stack([flow.amplitudes(data) for data in (stills[:, :, None], residual)])

    def loss(self, expert: Denoiser, number: int) -> Tensor:
        """Squared error of the clean block, relative to the variance that is to be explained at each noise level; of text starts
        changes and others: [3]. Of others only what is not in view counts: nothing else of them is used."""
        s, data = self.settings, self.windows.data
        stream = torch.Generator(data.latents.device).manual_seed(s.seed * 1_000_003 + number)

        def uniform(count: int) -> Tensor:
            return torch.rand(count, generator=stream, device=data.latents.device)

        starts, changes = round(s.batch * s.started), round(s.batch * s.changed)
        others = s.batch - starts - changes
        opening = self.starts[(uniform(starts) * len(self.starts)).long()]
        moved, count = self.moved, len(self.moved.step)
        chosen = torch.cat(
            [uniform(changes) * self.changes, self.changes + uniform(others) * (count - self.changes)]
        ).long()
        frames = moved.mean.shape[2]
        still = data.latents[data.still[opening]].float()[:, :, None].expand(-1, -1, frames, -1, -1)
        block = torch.cat([still, moved.data[chosen].float()])
        mean = torch.cat([torch.zeros_like(still), self._drifted(moved.mean[chosen].float(), stream)])
        visible = torch.cat([torch.zeros_like(still[:, :1]), moved.visible[chosen].float()])
        block, mean, visible = self._mirrored(block, mean, visible, uniform(s.batch) < s.mirrored, starts)
        step = torch.cat([opening, moved.step[chosen]])
        texts = data.event_texts
        told, before = texts.step[step], self.before[step]
        episode = torch.searchsorted(data.begin, step, right=True) - 1
        described = uniform(s.batch) < s.described
        described[:starts] = True
        caption = texts.episode[episode]
        told = torch.where(described & (told == 0), caption, told)
        before = torch.where(described & (before == 0) & (self.since[step] < UNCHANGED), caption, before)
        text, past = texts.tokens[told].float(), mean_token(texts.tokens[before].float())
        past[:starts] = 0
        text = text * (uniform(s.batch) >= s.dropout)[:, None, None]
        since = torch.cat([torch.full_like(opening, -1), self.since[moved.step[chosen]]])
        first = torch.cat([data.still[opening], moved.start[chosen]])
        start = self.flow.pictures(data.latents[first].float()[:, :, None])[:, 0]
        sigma = draw_sigma(s.batch, s.pure, self.shift, stream)
        noise = torch.randn(block.shape, generator=stream, device=block.device)
        noise[:starts] = noise[:starts, :, :1]  # as `rollout.generate_block` begins a picture that stands still
        level = sigma[:, None, None, None, None]
        conditions = expert.conditions(mean, visible, start, text, past, since)
        noise = conditions.correlated(noise)
        made = expert(flow.add_noise(block, noise, level), sigma, conditions)
        variance = conditions.variance.mean(dim=(1, 2, 3, 4), keepdim=True)
        error = self.counts * (made - block).square() / variance_left(variance, level)
        hidden = 1 - visible[starts + changes :]
        counts = torch.cat(
            [torch.ones_like(visible[: starts + changes]), hidden / hidden.mean().clamp(min=LEAST_HIDDEN)]
        )
        return torch.stack([part.mean() for part in (error * counts).split([starts, changes, others])])

    def _drifted(self, mean: Tensor, stream: torch.Generator) -> Tensor:
        """Moved frames [B, C, K, h, w], the colours and the contrast of some of them wrong, as a rollout's become."""
        s = self.settings
        worlds = (len(mean), 1, 1, 1, 1)
        drawn = torch.rand(worlds, generator=stream, device=mean.device)
        strength = s.colour * torch.rand(worlds, generator=stream, device=mean.device) * (drawn < s.drifted)
        contrast = torch.randn(worlds, generator=stream, device=mean.device)
        offset = torch.randn((len(mean), 1, 3, 1, 1), generator=stream, device=mean.device)
        pictures = self.flow.pictures(mean)
        return self.flow.latents((pictures * (1 + strength * contrast) + strength * offset).clamp(-1, 1))

    def _mirrored(
        self, block: Tensor, mean: Tensor, visible: Tensor, chosen: Tensor, starts: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`chosen` [B] of the blocks and moved frames, left and right exchanged; the first `starts` have no moved frames."""

        def mirror(latents: Tensor) -> Tensor:
            return self.flow.latents(self.flow.pictures(latents).flip(-1))

        where = chosen[:, None, None, None, None]
        moved = torch.cat([mean[:starts], mirror(mean[starts:])])
        return (
            torch.where(where, mirror(block), block),
            torch.where(where, moved, mean),
            torch.where(where, visible.flip(-1), visible),
        )


def joined(parts: Sequence[LatentSet]) -> LatentSet:
    """Several recordings as one."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.extended(part)
    return whole


def train(
    initial: Path,
    recordings: Sequence[Path],
    out: Path,
    minutes: float,
    settings: Settings = Settings(),
    expert: ExpertConfig | None = None,
    steps: int | None = None,
    texts: Path | None = None,
    device: str = "cpu",
) -> None:
    """Writes the weights folder `out`: those of `initial`, and the expert. With `steps` it ends after so many. `texts`: a file of
    encoded texts (train.street.text_table), where the text encoder is not installed. `device`: "cpu" or "cuda".

    Raises ValueError for a generator that moves no frames or reads no text, FileNotFoundError or RecordingError for what is
    missing.
    """
    config, expert = read_config(initial), expert or ExpertConfig(correlated=True)
    if not config.dit.output.flow_layer or not config.dit.text_dim:
        raise ValueError(f"{config.name!r} must move frames and read texts for an expert to do so, too")
    earlier = dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=None))
    config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, expert=expert))
    tensors = dit_tensors(initial)
    own = {name: value for name, value in tensors.items() if not name.startswith("expert.")}
    earlier_expert = {name.removeprefix("expert."): value for name, value in tensors.items() if name not in own}
    dit, vae = DiT(earlier), build_vae(config.vae)
    load_dit(dit, initial, adapt=lambda tensors: own)
    load_into(vae, initial, "vae.safetensors")
    dit.float().eval().requires_grad_(False).to(device)
    table = None if texts is None else TextTable(texts)
    actions = read_captions(initial) if config.action.kind == "first_person" else None
    conditioning = (
        build_conditioning(config, actions) if table is None else Conditioning(config.text, table.actions, table)
    )
    vae.float().to(device)
    sets, counts = [], 0
    for path in recordings:
        files = open_episodes(path)
        _, episodes = split_episodes(files)
        sets.append(encode_recording(earlier, vae, files, episodes, conditioning, device))
        counts += len(episodes)
    trainer = ExpertTraining(dit, Windows(earlier, joined(sets)), settings, expert, out / "stages" / "moved.pt")
    torch.manual_seed(settings.seed)
    network = Denoiser(config, expert).to(device)
    trainer.measure(network)
    given = fitting(network, earlier_expert)
    if network.state_dict().keys() - given.keys() <= {"amplitude"}:
        network.load_state_dict({**network.state_dict(), **given})
    budget = Budget(minutes, warmup=50, cooldown=settings.cooldown)
    if steps is not None:
        budget = dataclasses.replace(budget, steps=steps, warmup=2)
    both = optimizers(network, settings.lr, settings.weight_decay)
    stage = Stage(
        "expert", out / "stages" / "expert", budget, {"expert": network}, {"expert": both}, {"expert": settings.ema}
    )

    def step(number: int, done: float) -> dict[str, Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=has_fast_bfloat16(torch.device(device))):
            error = trainer.loss(network, number)
        stage.update("expert", (error * trainer.shares).sum())
        return dict(zip(("started", "changed", "other"), error.detach()))

    with tqdm(total=60 * minutes, unit="s", desc=out.name, mininterval=10) as bar:
        stage.run(step, bar)
    learnt = {f"expert.{name}": value.cpu() for name, value in stage.averaged("expert").state_dict().items()}
    training = {"stages": {"expert": stage.step}, "minutes": minutes, "episodes": counts}
    save_with_other_dit(initial, out, config, {**own, **learnt}, [training])
    write_parts(out)


def main() -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initial", required=True, help="a model's name or folder: the generator")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of episodes")
    parser.add_argument("--out", type=Path, required=True, help="run folder; a stopped run in it goes on")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--texts", type=Path, help="file of encoded texts, where the text encoder is not installed")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = GPU if device == "cuda" else Settings()
    try:
        train(
            find_weights(given.initial),
            given.data,
            given.out,
            given.minutes,
            settings,
            texts=given.texts,
            device=device,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()

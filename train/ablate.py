"""Ablations, same budget, small runs with seeds: `python -m train.ablate street --data DIR --vae RUN --initial WEIGHTS --out DIR`.

Every variant of `TRAINED` goes on from the same weights for `--steps` steps of foundation training, once a seed; `SAMPLED` are
given weights with other numbers of sampler steps. A result is written once, to `parts/`; the same command goes on where it was
stopped. Writes `ablations.md`, `ablations.png` and `ablations.json`, all from stored results.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data.corpus import Corpus
from train.data.latents import load_vae, origin_of
from train.data.shards import find_shards, latents_path
from train.engine.arguments import PATHS
from train.engine.loop import prepare_cpu
from train.engine.optimization import Optimization
from train.engine.pool import PoolSettings
from train.engine.sharding import own_device
from train.engine.variants import Variant, fitting, parts_of
from train.evaluation.ablations import page, plot, stored_results, write_files
from train.evaluation.held_out import held_out_psnr, sharpness_share
from train.evaluation.store import Store
from train.export import load_ema
from train.foundation import Initial, SelfForcing, Settings, train
from train.street.scene import part_name, scene_prior
from world_model import baselines, flow
from world_model.config import ModelConfig, Tiers
from world_model.cost.costs import count_parameters
from world_model.dit import DiT
from world_model.presets import get_preset
from world_model.priors.config import scene_of, with_scene
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.text import Conditioning
from world_model.vae import VideoVAE
from world_model.weights import dit_tensors, find_weights, load_dit, read_config, read_manifest, save_weights
from world_model.worlds import start_worlds

VERSION = 1  # of what is measured: results of another are not mixed
BLOCKS = 12  # dreamt of each held-out walk; no world of training lives longer, so "all history" has an end
TIMED = 9  # blocks; the first is not counted
SETTINGS = Settings(
    batch=4,
    pool=PoolSettings(episode_length=BLOCKS),
    optimization=Optimization(warmup=15),
    self_forcing=SelfForcing(dream_from=0, dream_over=1, dream_share=0.7),
)
DATA_FIELDS = ("height", "width", "fps", "block_latents", "vae", "text")  # of a model: what latents and texts depend on


def window(config: ModelConfig) -> Tiers:
    """The sliding window that has about as many tokens as the model's tiers. Raises ValueError for a model without tiers."""
    if not isinstance(config.dit.history.packing, Tiers):
        raise ValueError(f"{config.name} has no Tiers, which ablations vary: choose a model with them (street)")
    return baselines.window(config.dit.history.packing)


def everything(config: ModelConfig) -> Tiers:
    """`BLOCKS` blocks and the start picture at the finest size: nothing is dropped or shrunk while a world of training or of the
    measurement lives. The buffer is that long from the start (the start picture again and again), so tokens are constant; but they
    are as many as the longest world needs."""
    return Tiers(recent=((BLOCKS * config.block_latents, 1),), initial=1, old=(0, 1))


TRAINED = (
    Variant("tscm", "the model as it is"),
    Variant("spatial-only", "no channel path", {"channel": None}),
    Variant("sliding-window", "newest frames only, about as many tokens", {"packing": window, "channel": None}),
    Variant("full-history", "all frames at the finest size", {"packing": everything, "channel": None}),
    Variant("without-self-forcing", "histories are never dreamt", self_forcing={"dream_share": 0.0}),
    Variant("joint-history", "history runs along at every sampler step", {"attention": "joint"}),
    Variant("without-places", "no town known by heart", scene={"places": None, "events": None}),
    Variant("without-guide-and-places", "as in the paper", scene=None),
)
# name -> (whose weights, sampler steps)
SAMPLED = {f"{weights}-{steps}": (weights, steps) for weights in ("initial", "distilled") for steps in (1, 2, 4, 50)}


def variants_of(config: ModelConfig, settings: Settings) -> dict[str, tuple[ModelConfig, Settings]]:
    """The model and settings of each of `TRAINED`; those that are no different from an earlier one are left out."""
    found: dict[str, tuple[ModelConfig, Settings]] = {}
    for variant in TRAINED:
        base = replace(config, priors=()) if variant.scene is None else with_scene(config, **variant.scene)
        forcing = replace(settings.self_forcing, **variant.self_forcing)
        made = base.with_history(**variant.history_of(config)), replace(settings, self_forcing=forcing)
        if made not in found.values():
            found[variant.name] = made
    return found


def take_over(
    config: ModelConfig, initial: Path, corpus: Corpus, vae: VideoVAE, seed: int
) -> tuple[DiT, dict[str, list[str]]]:
    """A DiT of `config` with all tensors of the folder `initial` that fit it by name and shape; parts of it that start "fresh", and
    those of `initial` that are "left_out". The prior's deviation is measured anew where its depths or places are others.

    Raises ValueError where `initial` lacks a network that this training does not learn.
    """
    torch.manual_seed(seed)
    dit, given = DiT(config), dit_tensors(initial)
    before, now, scene = scene_of(read_config(initial)), scene_of(config), scene_prior(dit)
    taken = fitting(dit, given)
    deviation = part_name("deviation")
    if before is None or now is None or (before.depth, before.places) != (now.depth, now.places):
        taken.pop(deviation, None)
    dit.load_state_dict(taken, strict=False)
    fresh, left = dit.state_dict().keys() - taken.keys(), given.keys() - taken.keys()
    untrained = {name for name, p in dit.named_parameters() if not p.requires_grad} & fresh
    if untrained:
        raise ValueError(
            f"{initial} has no fitting weights for {', '.join(parts_of(untrained))} (such as {min(untrained)}), which foundation "
            "training does not learn: pass --initial weights of this model with its priors, landed again if they changed"
        )
    if scene is not None and deviation in fresh:
        scene.deviation.copy_(corpus.prior_deviation(scene, vae))
    return dit, {"fresh": parts_of(fresh), "left_out": parts_of(left)}


@torch.inference_mode()
def cost(dit: DiT, vae: VideoVAE, corpus: Corpus, conditioning: Conditioning) -> dict[str, float]:
    """Median milliseconds of a dreamt block of one world, decoding included, and its history tokens at the first and last block."""
    config, device = dit.config, own_device()
    sigmas = flow.schedule_of(config.sampler)
    present = torch.ones(1, dtype=torch.bool, device=device)
    worlds = start_worlds(dit, vae, corpus.picture(0, 0)[None].to(device), present)
    times, tokens = [], []
    for number in range(TIMED):
        action = corpus.action(0, number % corpus.blocks)
        context, pooled = (t.to(device) for t in conditioning.context([action], [None]))
        noise, streams = block_noise(config, [0], [number]).to(device), [generator("old", 0, number)]
        tokens.append(dit.pack(worlds.history, worlds.frame)[0].shape[1])
        began = time.perf_counter()
        worlds, _, video = dream_block(dit, vae, worlds, [action], context, pooled, Sampling(noise, sigmas), streams)
        video.cpu()
        times.append(1000 * (time.perf_counter() - began))
    ends = {"history_tokens/first": tokens[0], "history_tokens/last": tokens[-1]}
    return {"milliseconds": float(np.median(times[1:])), **ends}


class Ablation:
    """All variants of one model, each computed once and stored below `out`. `initial` and `distilled` are folders of weights.

    Raises StoreError where `out` holds results of something else, ValueError for weights of other pictures or texts,
    FileNotFoundError for what is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        data: Path,
        vae: Path,
        initial: Path,
        out: Path,
        settings: Settings = SETTINGS,
        steps: int = 150,
        distilled: Path | None = None,
    ) -> None:
        self.config, self.data, self.vae_folder, self.out, self.steps = config, data, vae, out, steps
        self.variants = variants_of(config, settings)
        self.weights = {"initial": initial} | ({"distilled": distilled} if distilled is not None else {})
        for folder in self.weights.values():
            other = [n for n in DATA_FIELDS if getattr(read_config(folder), n) != getattr(config, n)]
            if other:
                raise ValueError(f"{folder} has another {other[0]} than {config.name}: pass weights of that model")
        self.vae, fingerprint = load_vae(config, vae, str(own_device()))
        self.corpus, self.conditioning = Corpus(config, data), Conditioning(config.text)
        self.identity = {
            "version": VERSION,
            "model": dataclasses.asdict(config),
            "settings": dataclasses.asdict(settings),
            "steps": steps,
            "data": [origin_of(latents_path(path)) for path in find_shards(data)],
            "vae": fingerprint,
        }
        # distilled weights come and go: what belongs to them lies apart
        folders = {name: out if name == "initial" else out / name for name in self.weights}
        self.stores = {
            name: Store(folder, {**self.identity, "weights": read_manifest(self.weights[name])["files"]})
            for name, folder in folders.items()
        }

    def run(self, seeds: int, only: Sequence[str] = ()) -> None:
        """Computes what is not yet stored, of all variants or `only` some, with seeds 0, 1 ...; first what is cheap.

        Raises ValueError for an unknown name.
        """
        sampled = [name for name, (weights, _) in SAMPLED.items() if weights in self.weights]
        unknown = sorted(set(only) - {*sampled, *self.variants})
        if unknown:
            raise ValueError(
                f"unknown variant {unknown[0]!r}: choose from {', '.join([*sampled, *self.variants])} "
                "(distilled ones need --distilled; variants that change nothing in this model are left out)"
            )
        for name in (n for n in sampled if n in only or not only):
            self.stores[SAMPLED[name][0]].result(name, partial(self.sample, name))
        for seed in range(seeds):
            for name in (n for n in self.variants if n in only or not only):
                self.stores["initial"].result(f"{name}_seed{seed}", partial(self.train, name, seed))

    def train(self, name: str, seed: int) -> dict[str, Any]:
        """The result of a trained variant; its training in `runs/` goes on from its checkpoint if there is one."""
        config, settings = self.variants[name]
        run = self.out / "runs" / f"{name}_seed{seed}"
        start = run / "initial"
        if not (start / "manifest.json").exists():
            vae, _ = load_vae(config, self.vae_folder)
            dit, parts = take_over(config, self.weights["initial"], self.corpus, vae, seed)
            save_weights(start, config, {"dit.safetensors": dit.state_dict()}, parts)
        train(config, self.data, self.vae_folder, run, replace(settings, seed=seed), self.steps, None, Initial(start))
        average, metadata = load_ema(config, run)
        if metadata["steps"] != self.steps:
            raise RuntimeError(f"{run} is at step {metadata['steps']} of {self.steps}: run the same command again")
        parts = {key: read_manifest(start)[key] for key in ("fresh", "left_out")}
        return {"variant": name, "seed": seed, **parts, "figures": self.measure(average)}

    def sample(self, name: str) -> dict[str, Any]:
        """The result of given weights with another number of sampler steps."""
        weights, steps = SAMPLED[name]
        config = read_config(self.weights[weights])
        dit = DiT(replace(config, sampler=replace(config.sampler, steps=steps)))
        load_dit(dit, self.weights[weights])
        return {"variant": name, "seed": 0, "figures": self.measure(dit)}

    def measure(self, dit: DiT) -> dict[str, float]:
        """All figures of a network: dB and shares by horizon, milliseconds, tokens, parameters."""
        dit = dit.eval().requires_grad_(False).to(own_device())
        figures, truth, video = held_out_psnr(dit, self.vae, self.corpus, self.conditioning, BLOCKS)
        shares = sharpness_share(video, truth, dit.config.frames_per_block)
        spent = cost(dit, self.vae, self.corpus, self.conditioning)
        return {**figures, **shares, **spent, "parameters": count_parameters(dit.config)[0]}

    def write(self) -> None:
        """ablations.json, ablations.md and ablations.png from all that is stored, whatever was asked for now."""
        results = stored_results(self.stores.values(), (*self.variants, *SAMPLED))
        what = {variant.name: variant.what for variant in TRAINED}
        text = page(self.config.name, self.steps, results, what, SAMPLED)
        write_files(self.out, self.identity, results, text, plot(results, SAMPLED))


def main(argv: Sequence[str] | None = None) -> None:
    prepare_cpu()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="preset name")
    for name in ("data", "vae"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=PATHS[name])
    parser.add_argument("--initial", required=True, help="weights to start from: a folder (train.land) or preset name")
    parser.add_argument("--distilled", help="weights of a distilled model, dreamt with as many steps as --initial")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results; finished ones in it are kept")
    parser.add_argument("--steps", type=int, default=150, help="of training, each variant and seed (default 150)")
    parser.add_argument("--seeds", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--batch", type=int, default=SETTINGS.batch, help=f"worlds a step (default {SETTINGS.batch})")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="variants to compute; others stay as stored"
    )
    given = parser.parse_args(argv)
    try:
        ablation = Ablation(
            get_preset(given.model),
            given.data,
            given.vae,
            find_weights(given.initial),
            given.out,
            replace(SETTINGS, batch=given.batch),
            given.steps,
            find_weights(given.distilled) if given.distilled else None,
        )
        ablation.run(given.seeds, given.only)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    ablation.write()
    print(given.out / "ablations.md")


if __name__ == "__main__":
    main()

"""What a user of the learned world holds: `WorldModel` (weights) and `WorldState` (worlds between two steps).

    model = WorldModel.load("street")
    state = model.start([picture], [""], seeds=[0])
    state, frames = model.step(state, [Action.from_keys("W", "→")], ["a heavy rainstorm begins"])

A state is immutable: to save, restore or fork a world, keep the reference; to store it, pickle it; to fork it into another
dream, give it another seed: ``dataclasses.replace(state, seeds=(7,))``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from world_model import batch, flow
from world_model.checks import check_texts, check_whole
from world_model.conditions import Pose
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.heads import Outcome, OutcomeHeads, load_heads, newest
from world_model.known import Known, NearestText, load_known
from world_model.memory import Told
from world_model.released.files import is_released, load_release, open_text_encoder
from world_model.released.hub import find_or_fetch
from world_model.released.placement import load_options, place
from world_model.rollout import Sampling, block_noise, dream_block, generator
from world_model.state import WorldState, check_state
from world_model.text import NO_TEXT, Conditioning, build_conditioning, mean_token
from world_model.threads import parallel_map, single_thread
from world_model.vae import VideoVAE, build_vae
from world_model.weights import load_dit, load_into, read_captions, read_config, read_strip
from world_model.worlds import WorldBatch, batches, collate_worlds, empty_worlds, select_worlds, start_worlds

Found = TypeVar("Found")


class WorldModel:
    """A world model with its weights. All methods take batches of worlds, which may be of different ages.

    Worlds never influence each other, and randomness depends on a world's seed and step alone: a world gives the same frames
    by itself, in any batch, and whatever else runs in the process.
    """

    def __init__(
        self,
        config: ModelConfig,
        dit: DiT,
        vae: VideoVAE,
        conditioning: Conditioning,
        starts: np.ndarray | None = None,
        heads: OutcomeHeads | None = None,
    ) -> None:
        """starts: shipped pictures uint8 [n, H, W, 3]. heads: what reads reward and termination; without them there is none."""
        self.config, self.conditioning = config, conditioning
        self.dit, self.vae = dit.eval().requires_grad_(False), vae
        self.starts, self.heads = starts, heads
        self.known: Known | None = None  # texts and pictures of training, where the weights say
        self.folder: Path | None = None  # of the weights, where they were loaded from one of ours
        self._like: WorldState | None = None  # what states look like
        self.device, self.dtype = next(dit.parameters()).device, dit.dtype

    @classmethod
    @single_thread()
    def load(
        cls,
        model: str | os.PathLike = "street",
        device: str = "auto",
        dtype: str = "auto",
        size: tuple[int, int] | None = None,
        **options: Any,
    ) -> WorldModel:
        """Weights of a preset's name, or of a folder of ours or of a release (world_model.weights, world_model.released.files).

        device: "auto" (cuda if there is one), or torch's names. dtype: "auto" (bfloat16 on cuda, float32 elsewhere), "float32"
        or "bfloat16". size: (height, width) of the pictures, the model's own if None. options: `placement.LoadOptions`.
        "yume-5b" is fetched from the Hugging Face hub if it is not here (world_model.released.hub).
        Raises TypeError for what is no name or path, ValueError for unknown or damaged ones, FileNotFoundError for missing ones.
        """
        wanted = load_options({"device": device, "dtype": dtype, **options})
        device_of_all = wanted.torch_device  # an unknown device is told before anything is fetched
        folder = find_or_fetch(model, wanted)
        if is_released(folder):
            return cls(*load_release(folder, wanted, size))
        config = read_config(folder) if size is None else read_config(folder).resized(size)
        with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
            dit, vae = DiT(config), build_vae(config.vae)
        load_dit(dit, folder)
        load_into(vae, folder, "vae.safetensors")
        joined = config.text.joined  # one caption of action and event, which no table holds
        captions = read_captions(folder) if config.action.kind == "first_person" and not joined else None
        encoder = open_text_encoder(folder, config.text, wanted) if config.text.kind == "umt5" else None
        dit.to(wanted.staging, wanted.number(dtype))
        placed, placed_vae = place(dit, vae.to(device_of_all), wanted)
        conditioning, starts = build_conditioning(config, captions, encoder), read_strip(folder, "starts.png", config)
        for prior in placed.priors:
            prior.load_starts(folder, starts)
        loaded = cls(config, placed, placed_vae, conditioning, starts, load_heads(folder, config, device_of_all))
        loaded.folder, loaded.known = folder, load_known(folder, device_of_all)
        return loaded

    def starting_image(self, seed: int) -> np.ndarray:
        """A shipped starting picture, uint8 [H, W, 3], drawn with `seed`. Raises ValueError if the weights have none."""
        if self.starts is None:
            raise ValueError(
                f"the weights of {self.config.name!r} ship no starting pictures: start from an image or a text"
            )
        number = int(torch.randint(len(self.starts), (), generator=generator("starting picture", int(seed))))
        return self.starts[number].copy()

    @torch.inference_mode()
    def start(
        self, images: Sequence[np.ndarray | None] | np.ndarray | None, texts: Sequence[str | None], seeds: Sequence[int]
    ) -> WorldState:
        """New worlds, one per seed: from pictures uint8 [H, W, 3] of the model's size, or, where None, dreamt from the text.

        Raises ValueError for a picture of another shape or type, or a text where the model was trained without, TypeError for a
        seed that is no whole number or a text that is no str.
        """
        seeds = [check_whole("a seed", seed, least=None) for seed in seeds]
        check_texts(texts)
        pictures = [None] * len(seeds) if images is None else list(images)
        if not len(pictures) == len(texts) == len(seeds):
            raise ValueError(
                f"images, texts and seeds must be equally many, got {len(pictures)}, {len(texts)} and {len(seeds)}"
            )
        if self.config.text.kind == "none" and any(texts):
            raise ValueError(NO_TEXT)
        worlds = []
        for picture, text, seed in zip(pictures, texts, seeds):
            begun = self._start_from_text(text, seed) if picture is None else self._start_from_picture(picture)
            if begun.told is not None:
                words = mean_token(self.conditioning.event(text))[None].to(self.device, self.dtype)
                begun = replace(begun, told=Told.always(words))
            worlds.append(begun)
        outcomes = () if self.heads is None else (Outcome.none(1),) * len(worlds)
        told = tuple(text or "" for text in texts)
        return WorldState(collate_worlds(worlds), tuple(seeds), (0,) * len(worlds), told, outcomes)

    @torch.inference_mode()
    def step(
        self,
        state: WorldState,
        actions: Sequence[Any],
        events: Sequence[str | None] | None = None,
        steps: int | None = None,
        threads: int | None = None,
        batch_size: int = 1,
    ) -> tuple[WorldState, np.ndarray]:
        """Dreams one block of every world: (state afterwards, frames uint8 [B, T, H, W, 3]).

        actions: one of the model's space for each world (`config.action.check`): an `Action` or its index, a number, or an array.
        events: the text in force in each world now; where None or "", the world's start text is.
        steps: sampler steps, the model's own if None.
        batch_size: worlds that go through the network together. With 1 a world is the same bit by bit in any batch; more are
        faster, and a batched matrix product rounds differently: a grey level here and there, and from step to step more.
        threads: None dreams one batch after another on all threads that torch may use. A number dreams batches side by side on so
        many each: on a CPU several small ones are faster on one each. A world's last bits may depend on it.
        """
        events = [None] * len(state) if events is None else list(events)
        check_texts(events)
        steps = None if steps is None else check_whole("steps", steps, least=1)
        batch_size = check_whole("batch_size", batch_size, least=1)
        if not len(actions) == len(events) == len(state):
            raise ValueError(
                f"{len(state)} worlds need as many actions and events, got {len(actions)} and {len(events)}"
            )
        actions = [self.config.action.check(action) for action in actions]
        sampler = self.config.sampler
        sigmas = flow.schedule_of(sampler, steps)
        prompts = [event or text for event, text in zip(events, state.texts)]

        @torch.inference_mode()
        def dream(numbers: list[int], words: Sequence[Tensor]) -> tuple[WorldBatch, Tensor, Outcome | None]:
            worlds = select_worlds(state.worlds, numbers)
            keys = [(state.seeds[i], state.steps[i]) for i in numbers]
            seeds, ages = zip(*keys)
            event, pooled = (t.to(self.device, self.dtype) for t in words)
            noise = block_noise(self.config, seeds, ages).to(self.device)
            streams = [generator("old frames", *key) for key in keys]
            held = [actions[i] for i in numbers]
            after, latents, video = dream_block(
                self.dit, self.vae, worlds, held, event, pooled, Sampling(noise, sigmas), streams
            )
            if self.heads is None:
                return after, video, None
            before = batch.collate([state.outcomes[i] for i in numbers]) if state.outcomes else None
            seen = newest(worlds.history.latents, latents, self.heads.config.frames)
            return after, video, batch.move(self.heads.predict(seen, words[1].to(self.device), before), "cpu")

        together = batches(state.worlds, batch_size)
        # texts are encoded here, one thread at a time
        words = [self.conditioning.context([actions[i] for i in part], [prompts[i] for i in part]) for part in together]
        each = list(zip(together, words))
        dreamt = [dream(*one) for one in each] if threads is None else parallel_map(dream, each, threads)
        return self._in_order(state, together, dreamt)

    def _in_order(
        self, state: WorldState, together: list[list[int]], dreamt: list[tuple[WorldBatch, Tensor, Outcome | None]]
    ) -> tuple[WorldState, np.ndarray]:
        """`state` after the batches that were dreamt `together`, and the frames of all, in the order of `state`."""
        worlds, videos, outcomes = zip(*dreamt)
        after, video = collate_worlds(worlds), torch.cat(videos)
        order = [number for part in together for number in part]
        each = [
            batch.rows(part, slice(i, i + 1)) for part in outcomes if part is not None for i in range(len(part.reward))
        ]
        if order != list(range(len(order))):  # of unequal histories
            back = sorted(range(len(order)), key=order.__getitem__)
            after, video = select_worlds(after, back), video[back]
            each = [each[i] for i in back] if each else []
        return replace(
            state, worlds=after, steps=tuple(number + 1 for number in state.steps), outcomes=tuple(each)
        ), _to_uint8(video)

    def preview(self, state: WorldState) -> np.ndarray:
        """The picture each world stands at, uint8 [B, H, W, 3]."""
        return _to_uint8(state.worlds.picture[:, :, None])[:, 0]

    @torch.inference_mode()
    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Normalised latents float32 [B, C, h, w] of pictures uint8 [B, H, W, 3]: of each, one latent frame of a video that
        stands still. A picture gives the same in any batch. Raises ValueError for pictures of another shape or type."""
        stride = self.config.vae.temporal_stride
        videos = [self._to_tensor(picture)[:, :, None].expand(-1, -1, stride, -1, -1) for picture in pictures]
        return torch.cat([self.vae.encode(video)[:, :, 0] for video in videos]).float().cpu().numpy()

    @torch.inference_mode()
    def check_state(self, state: WorldState) -> None:
        """Raises TypeError or ValueError for what `start` and `step` of this model cannot have given (`state.check_state`)."""
        if self._like is None:
            size = (1, 3, self.config.height, self.config.width)
            worlds = self._static_worlds(torch.zeros(size, device=self.device), None)
            outcomes = () if self.heads is None else (Outcome.none(1),)
            self._like = WorldState(worlds, (0,), (0,), ("",), outcomes)
        check_state(state, self._like, exact=self.dit.packing.constant)

    @torch.inference_mode()
    def nearest_text(self, text: str) -> NearestText | None:
        """Which text of training is nearest to one that the model is told; None where the weights do not say."""
        if self.known is None or self.config.text.kind == "none":
            return None
        return self.known.nearest(mean_token(self.conditioning.event(text)))

    def picture_distance(self, picture: np.ndarray) -> float | None:
        """How far a picture uint8 [H, W, 3] is from those of training, about 1 is usual; None where the weights do not say."""
        if self.known is None:
            return None
        return float(self.known.distance(torch.from_numpy(self.encode(picture[None])).to(self.device)))

    def locate(self, picture: np.ndarray) -> tuple[tuple[float, float, float], float]:
        """Where in the towns that this model knows a picture uint8 [H, W, 3] was taken: (x, z; metres; yaw, radians), and how
        unlike the town it looks there: 0 is the same, 1 and more nothing alike; pictures of the towns are mostly below .6. One
        can stand at the pose, whatever the picture. Raises ValueError for models that know none."""
        with torch.inference_mode():
            seen = self._to_tensor(picture)
            found = _first(prior.locate(self.vae, seen) for prior in self.dit.priors)
        if found is None:
            raise ValueError(f"{self.config.name!r} knows no town: it finds no picture in one")
        pose, error = found
        x, z = pose.position[0].tolist()
        return (x, z, float(pose.yaw)), error

    def _start_from_picture(self, picture: np.ndarray) -> WorldBatch:
        """A world whose past is a static view of a picture."""
        seen = self._to_tensor(picture)
        return self._static_worlds(seen, _first(prior.estimate_pose(self.vae, seen) for prior in self.dit.priors))

    def _static_worlds(self, picture: Tensor, pose: Pose | None) -> WorldBatch:
        """Worlds whose past is a static view of a picture [1, 3, H, W]."""
        return start_worlds(self.dit, self.vae, picture, torch.ones(1, dtype=torch.bool, device=self.device), pose)

    def _start_from_text(self, text: str | None, seed: int) -> WorldBatch:
        """A world of which one block was generated from the text alone.

        Released models go on from that block, as they were trained to; ours from its last picture, standing still.
        """
        context, pooled = (
            t.to(self.device, self.dtype) for t in self.conditioning.context([self.config.action.noop], [text])
        )
        pose = _first(prior.sample_pose(context, generator("place", seed)) for prior in self.dit.priors)
        nothing = empty_worlds(self.dit, self.vae, 1, self.device, pose)
        sampler = self.config.sampler
        noise = block_noise(self.config, [seed], [-1], sampler.start_temperature).to(self.device)
        sigmas = flow.schedule_of(sampler, sampler.start_steps)
        after, _, _ = dream_block(
            self.dit,
            self.vae,
            nothing,
            [self.config.action.noop],
            context,
            pooled,
            Sampling(noise, sigmas),
            [generator("start", seed)],
        )
        return self._static_worlds(after.picture, pose) if self.dit.packing.constant else after

    def _to_tensor(self, picture: np.ndarray) -> Tensor:
        shape = (self.config.height, self.config.width, 3)
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != shape:
            got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise ValueError(f"a picture must be a uint8 array of shape {shape}, got {got}")
        return torch.from_numpy(picture.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1


def _first(found: Iterable[Found | None]) -> Found | None:
    return next((one for one in found if one is not None), None)


def _to_uint8(video: Tensor) -> np.ndarray:
    pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()

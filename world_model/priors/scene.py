"""The scene prior: the last picture moved as commanded, and a town and its events known by heart for what that does not show.

What it predicts is the warped picture where that is valid (warp.py, filled in from album.py) and else the town as it is known
(places.py), with the things that events bring drawn over both (events.py). In a known town one stops at walls, and a start picture
or text is given a place (finder.py). A scene prior without places is the warped picture alone.

Shapes: B worlds, C latent channels, K latent frames of a block, T its pictures, H x W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.conditions import BlockContext, Motion, Pose
from world_model.config import ModelConfig
from world_model.priors.album import Album
from world_model.priors.base import Prediction, Prior
from world_model.priors.config import SceneConfig
from world_model.priors.depth import DepthNet
from world_model.priors.events import NOTHING, Events
from world_model.priors.finder import Finder
from world_model.priors.places import Places
from world_model.priors.warp import OUTDATED, USELESS, Guide, PosedPicture, guide_block
from world_model.retrieval import View
from world_model.vae import VideoVAE
from world_model.weights import check_file, load_into

LEAST = 1e-3  # variance of what is sure
# share of a pixel that is covered beyond which a picture is not looked up there, nor so many pixels around it
COVERED, MARGIN = 0.05, 4


@dataclass(frozen=True)
class SceneState:
    """Between two blocks.

    place [B, 2] float64: where worlds stand (world x, z; metres: in the town's coordinates if one is known, else from the start).
    doubt [B, 1, H, W]: of the last picture (warp.py). told [B, text_dim]: sum of the tokens of the text last in force.
    course [B, 5] float64: of the event that it told of (events.py: x, z, heading, the frame before which it began, and whether its
    text may change light or weather). album: earlier pictures.
    """

    place: Tensor
    doubt: Tensor
    told: Tensor
    course: Tensor
    album: Album


@dataclass(frozen=True)
class Ahead:
    """Of a block: the warped picture, the text in force, where that changes light or weather (changed [B] bool), the course of its
    event, and where the last picture shows what that brings (covered [B, 1, H, W], or None)."""

    guide: Guide
    told: Tensor
    changed: Tensor
    course: Tensor
    covered: Tensor | None


class ScenePrior(Prior):
    """The scene prior of one model."""

    def __init__(self, config: SceneConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        channels, text = model.dit.latent_channels, model.dit.text_dim
        self.depth = DepthNet(config.depth, model.camera)
        self.places = Places(config.places, model.camera, model.latent_size, channels, text) if config.places else None
        self.events = Events(model) if config.events else None
        self.channels = channels * (2 if config.places else 1) + 1
        # per channel: where the warped picture saw nothing, and where it did
        self.register_buffer("deviation", torch.ones(2, channels))
        self.finder: Finder | None = None
        self._poses: dict[bytes, tuple[float, float, float]] = {}

    # ---- where worlds begin -------------------------------------------------------------------------------------------

    def load_starts(self, folder: Path, pictures: np.ndarray | None) -> None:
        """The finder and where the shipped pictures were taken, for models that know a town."""
        if self.places is None:
            return
        with torch.random.fork_rng(devices=[]):
            towns = self.places.config.towns
            finder = Finder(self.places.config.period, (self.model.height, self.model.width), towns=len(towns))
        load_into(finder, folder, "finder.safetensors")
        poses = json.loads(check_file(folder, "starts.json").read_text()) if pictures is not None else []
        self.set_starts(finder.to(self.deviation.device), pictures, poses)

    def set_starts(self, finder: Finder, pictures: np.ndarray | None, poses: list[tuple[float, float, float]]) -> None:
        """Takes a finder, and the poses (x, z, yaw) of shipped pictures."""
        self.finder = finder.eval().requires_grad_(False)
        self._poses = {picture.tobytes(): pose for picture, pose in zip(() if pictures is None else pictures, poses)}

    def locate(self, vae: VideoVAE, picture: Tensor) -> tuple[Pose, float] | None:
        """In which known town, too: `Places` says so of a place. One can stand at the pose, whatever the picture."""
        if self.places is None:
            return None
        if self.finder is None:
            raise ValueError(f"{self.model.name} knows a town and needs a finder: load weights with finder.safetensors")
        still = picture[:, :, None].expand(-1, -1, self.model.vae.temporal_stride, -1, -1)
        pose, error = self.finder.find(self.places, picture, vae.encode(still)[:, :, 0])
        return _level(pose), error

    def estimate_pose(self, vae: VideoVAE, picture: Tensor) -> Pose | None:
        pixels = ((picture[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        known = self._poses.get(pixels.cpu().numpy().tobytes())
        if known is not None:
            return _level(torch.tensor(known, dtype=torch.float64, device=picture.device))
        found = self.locate(vae, picture)
        return found[0] if found is not None else None

    def sample_pose(self, context: Tensor, stream: torch.Generator) -> Pose | None:
        if self.places is None:
            return None
        return _level(self.places.somewhere(stream, self._words(context)).to(context.device))

    def initial_state(self, pictures: Tensor, pose: Pose) -> SceneState:
        c, batch = self.model, len(pictures)
        return SceneState(
            place=pose.position,
            doubt=torch.zeros_like(pictures[:, :1]),
            told=pictures.new_zeros(batch, c.text.dim),
            course=pose.yaw.new_zeros(batch, 5),
            album=Album.empty(batch, self.config.album, c.height, c.width, pictures.device),
        )

    # ---- a block ------------------------------------------------------------------------------------------------------

    def constrain(self, state: SceneState, motion: Motion) -> Motion:
        """In a known town, as far as one can walk."""
        if self.places is None:
            return motion
        return replace(motion, displacement=self.places.walk(state.place, motion.displacement))

    def _words(self, context: Tensor) -> Tensor:
        """The text's tokens."""
        return context[:, : self.model.text.event_tokens]

    def _kind(self, block: BlockContext) -> Tensor | None:
        """Kinds [B] of event that texts tell of; a first text describes, nothing happens."""
        if self.events is None:
            return None
        return self.events.read(self._words(block.context)).masked_fill(~block.worlds.history.has_past, NOTHING)

    def condition_text(self, state: SceneState, block: BlockContext) -> Tensor:
        """Texts that tell of a known event, in its best known wording."""
        return self._heard(block, self._kind(block))

    def _heard(self, block: BlockContext, kind: Tensor | None) -> Tensor:
        if self.events is None or kind is None:
            return block.context
        words = self.events.heard(self._words(block.context), kind)
        return torch.cat([words, block.context[:, words.shape[1] :]], dim=1)

    @torch.no_grad()
    def predict(self, state: SceneState, block: BlockContext, vae: VideoVAE) -> Prediction:
        kind = self._kind(block)
        things = self.events.things(kind) if self.events is not None and kind is not None else None
        told, changed, course = self._told(state, block, kind, things)
        guide = self._guide(state, block, vae, changed)
        known, thing, sure = None, None, None
        if self.places is not None:
            shown = block.worlds.history.latents
            words = self._words(self._heard(block, kind))
            look = self.places.looks(shown[:, :, 0], shown[:, :, -1], block.worlds.history.has_past, words)
            stride = self.model.vae.temporal_stride
            stand = state.place[:, None] + block.motion.displacement[:, stride - 1 :: stride]
            views = View(block.target.yaw, block.target.pitch, stand)
            known = self.places.painted(self.places.rays(stand, views.yaw, views.pitch), look)
            if self.events is not None and kind is not None and things is not None and _some(things):
                age = block.target.frame - course[:, 3:4].long()
                away = self.places.clear_sight(stand, views.yaw, views.pitch)
                thing = self.events(kind, views, away, course[:, :3], age, known)
                known, _ = self.events.over(vae, known, *thing)
                guide = guide.with_things(vae, *self.events.over(vae, guide.latents, *thing), thing[1])
                sure = F.avg_pool3d(thing[1], (1, self.events.patch, self.events.patch))
        ahead = Ahead(guide, told, changed, course, None if thing is None else thing[1][:, :, -1])
        return replace(self.combined(guide.latents, guide.valid, known, sure), auxiliary=ahead)

    def combined(
        self, warped: Tensor, valid: Tensor, known: Tensor | None = None, sure: Tensor | None = None
    ) -> Prediction:
        """The warped picture's latents [B, C, K, h, w] where they are valid [B, 1, K, h, w], in 0..1, else those of the `known`
        place; `sure` [B, 1, K, h, w], in 0..1, is how much of them is to stay as it is."""
        shown = [warped * valid, valid] + ([known] if known is not None else [])
        mean = warped * valid if known is None else torch.lerp(known, warped, valid)
        unseen, seen = self.deviation.square()[:, None, :, None, None, None]
        variance = valid * seen + (1 - valid) * unseen
        if sure is not None:
            variance = variance * (1 - sure) + LEAST * sure
        return Prediction(mean=mean, variance=variance, features=torch.cat(shown, dim=1))

    def _told(
        self, state: SceneState, block: BlockContext, kind: Tensor | None, things: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The text in force, where that changes light or weather, and the course of its event (`Ahead`)."""
        worlds = block.worlds
        told = self._words(block.context).float().sum(dim=1)
        new, course, quiet = (told != state.told).any(dim=-1), state.course, (told == 0).all(dim=-1)
        if self.events is not None and self.places is not None and kind is not None and things is not None:
            if _some(new & things):
                stand = self.events.begin(kind, self.places, state.place, worlds.yaw)
                begun = torch.cat([stand, worlds.frame[:, None]], dim=1)
                course = torch.cat([torch.where((new & things)[:, None], begun, course[:, :4]), course[:, 4:]], dim=1)
            quiet = quiet | things
        changed = new & (worlds.frame > 0) & ~(quiet & (course[:, 4] == 0))
        return told, changed, torch.cat([course[:, :4], (~quiet)[:, None].double()], dim=1)

    def _guide(self, state: SceneState, block: BlockContext, vae: VideoVAE, changed: Tensor) -> Guide:
        """The last picture, warped; the text in force has `changed` [B] bool."""
        worlds, motion = block.worlds, block.motion
        there = state.place + motion.displacement[:, -1]
        recalled = state.album.recall(motion.yaw[:, -1], motion.pitch[:, -1], there, state.place)
        if recalled is not None:  # pictures from before the text changed show another light
            recalled = replace(recalled, present=recalled.present & ~changed)
        trust = worlds.history.has_past * torch.where(changed, OUTDATED, 1.0)
        doubt = state.doubt if self.places is not None else None
        last = PosedPicture(worlds.picture, worlds.yaw, worlds.pitch, doubt)
        return guide_block(self.depth, vae, last, motion, recalled, worlds.cache, trust)

    def update(
        self, state: SceneState, block: BlockContext, prediction: Prediction, latents: Tensor, video: Tensor
    ) -> tuple[SceneState, Tensor]:
        worlds, ahead = block.worlds, prediction.auxiliary
        clear = worlds.history.has_past & ~ahead.changed & (state.doubt < USELESS).flatten(1).all(dim=1)
        doubt = ahead.guide.doubt
        if ahead.covered is not None:  # what moves by itself is not to be looked up where it was
            hidden = F.max_pool2d(ahead.covered, 2 * MARGIN + 1, 1, MARGIN) > COVERED
            doubt = torch.where(hidden, USELESS, doubt)
        album = state.album.without(ahead.changed).add(worlds.picture, worlds.yaw, worlds.pitch, state.place, clear)
        place = state.place + block.motion.displacement[:, -1]
        after = SceneState(place=place, doubt=doubt, told=ahead.told, course=ahead.course, album=album)
        return after, ahead.guide.restored(video, latents)


def _level(pose: Tensor) -> Pose:
    """Of one world at a pose [3] (x, z, yaw) that looks neither up nor down."""
    return Pose(yaw=pose[None, 2], pitch=torch.zeros_like(pose[None, 2]), position=pose[None, :2])


def _some(flags: Tensor) -> bool:
    return flags.is_meta or bool(flags.any())  # plans count the dearer case

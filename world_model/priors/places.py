"""Places: what towns look like from anywhere in them, learnt by heart, for what neither the last picture nor the album shows.

Two parts, both learnt by train.places. A field of distances to whatever is solid (distance_field.py) says where a ray ends; hashed
tables of features at several sizes of voxel (multiresolution hash encoding, arXiv 2201.05989) say what is there, and a small
network turns the features under a token's rays into latents, in the light and weather of the last picture or the text. The DiT
starts from them where the guide (warp.py) has nothing, and is free to disagree.

Each town has a field and tables of its own; the network is theirs together.

Shapes: B worlds, T views, h x w tokens, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from world_model.camera import CameraConfig
from world_model.priors.config import PlacesConfig
from world_model.priors.distance_field import APART, FARTHEST, ROUNDS, STEPS, DistanceField, to_ground
from world_model.priors.geometry import camera_rays, camera_to_world
from world_model.text import mean_token, scaled

# metres above and below a solid's inside that hide nothing, as things stand only about where they are thought to; the step there
SHELL, INSIDE = 0.4, 0.12
UNKNOWN = -1e4  # logit of views of towns not yet learnt
BANDS = 4  # rows of the picture whose mean colour tells light and weather
PRIMES = (1, 2654435761, 805459861)
LIGHTS, WEATHERS = 4, 4  # that a text can tell of
VIEWS = 400  # of the town, among which a text chooses where to start ...
CHOOSY = 1.5  # ... by likelihoods to this power: views that fit a text a little are many


@dataclass(frozen=True)
class Rays:
    """Rays of T views, `rays` x `rays` a token: directions [B, T, h r, w r, 3] (x, height, z), features of what they meet [..., n],
    metres to it [...]."""

    direction: Tensor
    features: Tensor
    away: Tensor


class Places(DistanceField):
    """Latents seen from anywhere in the known towns. Before training nothing is solid and all is sky."""

    skies: Tensor
    views: Tensor

    def __init__(
        self, config: PlacesConfig, camera: CameraConfig, size: tuple[int, int], channels: int, text: int
    ) -> None:
        super().__init__(config)
        self.camera, self.size, self.words, towns = camera, size, text, len(config.towns)
        self.tables = nn.ParameterList(
            nn.Parameter(1e-2 * torch.randn(towns * 2**log_entries, width)) for _, log_entries, width in config.tables
        )
        inputs = sum(width for *_, width in config.tables) + 5
        self.look = nn.Sequential(nn.Linear(2 * BANDS * channels + 1 + text, 64), nn.ReLU(), nn.Linear(64, config.look))
        # what means do not tell, such as rain before dark walls; starts as nothing
        self.sight = nn.Sequential(
            nn.Conv2d(channels, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, 2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.glance = nn.Linear(2 * 48, config.look)
        nn.init.zeros_(self.glance.weight)
        nn.init.zeros_(self.glance.bias)
        self.sky = nn.Linear(text, LIGHTS + WEATHERS)  # which of them a text tells of, where there is no picture yet
        self.register_buffer("skies", torch.zeros(LIGHTS, WEATHERS, config.look))
        self.register_buffer("views", torch.zeros(towns * VIEWS, 3))  # each in its own town's coordinates
        self.where = nn.Linear(text, towns * VIEWS)
        nn.init.constant_(self.where.bias[VIEWS:], UNKNOWN)
        self.paint = nn.Sequential(
            nn.Linear(inputs * config.rays**2 + config.look, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.ReLU(),
        )
        self.blend = nn.Conv2d(config.width, config.width, 3, padding=1)  # of neighbouring tokens
        self.head = nn.Linear(config.width, channels)

    def forward(self, place: Tensor, yaw: Tensor, pitch: Tensor, look: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] of views at place [B, T, 2] (x, z; metres), yaw and pitch [B, T] (radians), look [B, L]."""
        return self.painted(self.rays(place, yaw, pitch), look)

    def rays(self, place: Tensor, yaw: Tensor, pitch: Tensor) -> Rays:
        """What the rays of views meet; arguments as for `forward`."""
        upward = self.directions(yaw, pitch, self.config.rays)
        origin = self._origin(place, self.camera.eye_height)
        return Rays(upward, *self.features(origin[:, :, None, None].expand_as(upward), upward))

    def directions(self, yaw: Tensor, pitch: Tensor, each: int) -> Tensor:
        """Directions [B, T, h n, w n, 3] (x, height, z) of views at yaw, pitch [B, T] (radians), `each` (n) a token both ways."""
        rows, columns = (side * each for side in self.size)
        rays = camera_rays(rows, columns, self.camera, yaw.device)
        direction = torch.einsum("btij,hwj->bthwi", camera_to_world(yaw.float(), pitch.float()), rays)
        return direction * direction.new_tensor([1.0, -1.0, 1.0])  # height grows upwards

    def painted(self, rays: Rays, look: Tensor) -> Tensor:
        """The latents of views whose rays are known."""
        r, views = self.config.rays, rays.away.shape[1]
        found = rearrange(rays.features, "b t (h p) (w q) c -> (b t) h w (p q c)", p=r, q=r).to(look.dtype)
        light = repeat(look, "b c -> (b t) h w c", t=views, h=self.size[0], w=self.size[1])
        painted = rearrange(self.paint(torch.cat([found, light], dim=-1)), "n h w c -> n c h w")
        blended = rearrange(self.blend(painted).relu(), "n c h w -> n h w c")
        return rearrange(self.head(blended), "(b t) h w c -> b c t h w", t=views).float()

    def looks(self, first: Tensor, last: Tensor, present: Tensor, context: Tensor) -> Tensor:
        """Light and weather [B, L]: of a world's first and last pictures' latents [B, C, h, w] and of a text's tokens [B, N, D],
        zero-padded; of the text alone where none is `present` [B]. The first tells what light an event's end brings back."""
        bands = [F.adaptive_avg_pool2d(x.float(), (BANDS, 1)).flatten(1) * present[:, None] for x in (last, first)]
        text = mean_token(context.float())
        known = torch.cat([bands[0], present[:, None].float(), text, bands[1]], dim=1)
        number = self.tables[0].dtype
        seen = [self.sight(x.to(number)) * present[:, None] for x in (last, first)]
        shown = self.look(known.to(number)) + self.glance(torch.cat(seen, dim=1))
        read = self.sky(scaled(text).to(number)).split((LIGHTS, WEATHERS), dim=-1)
        light, weather = (part.argmax(dim=-1) for part in read)  # a mixture of two would look like a third
        return torch.where(present[:, None], shown, self.skies[light, weather].to(shown.dtype))

    def somewhere(self, stream: torch.Generator, context: Tensor) -> Tensor:
        """One of the `views`: a pose [3] float64 (x, z; metres; yaw, radians), likelier what the text's tokens [1, N, D] describe;
        any if there is no text."""
        logits = self.where(mean_token(context.float()).to(self.where.weight.dtype))[0].double().cpu()
        told = bool((context != 0).any())
        share = (CHOOSY * logits).softmax(-1) if told else torch.ones_like(logits)
        number = torch.multinomial(share, 1, generator=stream)[0]
        pose = self.views[number].double()
        pose[0] += (number // (len(self.views) // len(self.config.towns))) * APART * self.config.period
        return pose

    def choices(self, town: int) -> slice:
        """The rows of `views` that are a town's."""
        each = len(self.views) // len(self.config.towns)
        return slice(town * each, (town + 1) * each)

    def clear_sight(self, place: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
        """Metres [B, T, 2 h, 2 w] that one sees in views as for `forward`: to the ground or into what is solid, whose highest and
        lowest `SHELL` hide nothing: rather a thing that shows too much than one that is lost behind a twig."""
        upward = self.directions(yaw, pitch, 2)
        origin = self._origin(place, self.camera.eye_height)[:, :, None, None].expand_as(upward)
        around = torch.tensor([[0.0, SHELL, 0.0], [0.0, -SHELL, 0.0]], device=yaw.device)
        away = torch.full_like(origin[..., 0], 0.1)
        for _ in range(STEPS * ROUNDS):
            point = origin + away[..., None] * upward
            free, solid = self._meet(point)
            deep = solid & self._meet(point[..., None, :] + around)[1].all(dim=-1)
            away = away + torch.where(deep, 0.0, torch.where(free > 0, self._step(free), INSIDE))
        return torch.minimum(away, to_ground(origin, upward)).clamp(max=FARTHEST)

    def features(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """What rays [..., 3] (x, height, z) meet: features of the tables, how far, whether anything, where they look [..., n]; and
        how far in metres."""
        with torch.no_grad():
            away, met = self.trace(origin, direction)
            point = origin + away[..., None] * direction
            facts = torch.cat([(1 + away).log()[..., None] / 4, met[..., None].float(), direction], dim=-1)
        found = [
            self._table(table, point, size) for table, (size, *_) in zip(self.tables, self.config.tables, strict=True)
        ]
        return torch.cat([torch.cat(found, dim=-1) * met[..., None], facts], dim=-1), away

    def _table(self, table: Tensor, point: Tensor, size: float) -> Tensor:
        """Trilinear interpolation of a hashed table at points [..., 3]."""
        cells, entries = round(self.config.period / size), len(table) // len(self.config.towns)
        first = self._met_town(point[..., 0]) * entries
        units = point / size
        low = units.floor()
        part = units - low
        low = low.long()
        total = table.new_zeros(*point.shape[:-1], table.shape[1])
        for corner in range(8):
            bits = [(corner >> axis) & 1 for axis in range(3)]
            x, h, z = (low[..., axis] + bits[axis] for axis in range(3))
            key = torch.remainder(x, cells) * PRIMES[0] ^ h * PRIMES[1] ^ torch.remainder(z, cells) * PRIMES[2]
            weight = torch.where(part.new_tensor(bits) > 0, part, 1 - part).prod(dim=-1, keepdim=True)
            total = total + F.embedding(first + (key & (entries - 1)), table) * weight
        return total

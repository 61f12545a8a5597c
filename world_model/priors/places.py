"""Places: what towns look like from anywhere in them, learnt by heart, for what neither the last picture nor the album shows.

Two parts, both learnt by train.places. A field of distances to whatever is solid (voxels on a torus, finer ones where they are
so only in part) says where a ray ends; hashed tables of features at several sizes of voxel (multiresolution hash encoding, arXiv
2201.05989) say what is there, and a small network turns the features under a token's rays into latents, in the light and weather
of the last picture or the text. The DiT starts from them where the guide (warp.py) has nothing, and is free to disagree.

Each town has a field and tables of its own; the network is theirs together. Towns lie on one plane, so far apart that nobody walks
from one to another: where somebody stands says in which town.

Shapes: B worlds, T views, h x w tokens, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from world_model.camera import CameraConfig
from world_model.priors.config import PlacesConfig
from world_model.priors.geometry import camera_rays, camera_to_world
from world_model.text import mean_token, scaled

UNIT = 0.125  # metres of one step of the stored distances
PARTLY = 1  # the stored distance of a voxel that is solid in part: bits of a brick say where
STEPS, ROUNDS, HALVINGS = (
    8,
    6,
    5,
)  # of sphere tracing, in rounds after which rays that met something rest; of the last step
# metres above and below a solid's inside that hide nothing, as things stand only about where they are thought to; the step there
SHELL, INSIDE = 0.4, 0.12
FARTHEST = 90.0  # metres a ray is followed
APART = 2**20  # towns' sides between the middles of two towns
UNKNOWN = -1e4  # logit of views of towns not yet learnt
BANDS = 4  # rows of the picture whose mean colour tells light and weather
PRIMES = (1, 2654435761, 805459861)
LIGHTS, WEATHERS = 4, 4  # that a text can tell of
VIEWS = 400  # of the town, among which a text chooses where to start ...
CHOOSY = 1.5  # ... by likelihoods to this power: views that fit a text a little are many
OVERHEAD = 7.5  # metres up where only houses end the sight: above trees and lamps, below roofs


@dataclass(frozen=True)
class Rays:
    """Rays of T views, `rays` x `rays` a token: directions [B, T, h r, w r, 3] (x, height, z), features of what they meet [..., n],
    metres to it [...]."""

    direction: Tensor
    features: Tensor
    away: Tensor


class Places(nn.Module):
    """Latents seen from anywhere in the known towns.

    A town is a torus of `period` x `period` metres; a world's place (x, z) is in its coordinates, town n's x from
    n * APART * period on. Before training nothing is solid and all is sky.
    """

    distance: Tensor
    bricks: Tensor | None
    field: Tensor
    walkable: Tensor
    skies: Tensor
    views: Tensor

    def __init__(
        self, config: PlacesConfig, camera: CameraConfig, size: tuple[int, int], channels: int, text: int
    ) -> None:
        super().__init__()
        self.config, self.camera, self.size, self.words = config, camera, size, text
        cells, levels, towns = round(config.period / config.cell), round(config.height / config.cell), len(config.towns)
        self.stride = config.period * math.ceil(1 + 4 * FARTHEST / config.period)  # between towns' rays, in float32
        self.register_buffer("distance", torch.full((towns * cells, levels, cells), 255, dtype=torch.uint8))
        self.register_buffer("bricks", torch.zeros(config.bricks, dtype=torch.int64) if config.bricks else None)
        self.register_buffer("field", self.distance.int(), persistent=False)
        self.register_load_state_dict_post_hook(lambda places, _: places.number_bricks())
        self.register_buffer("walkable", torch.ones(towns * cells, cells, dtype=torch.bool))
        self.tables = nn.ParameterList(
            nn.Parameter(1e-2 * torch.randn(towns * 2**log_entries, width)) for _, log_entries, width in config.tables
        )
        inputs = sum(width for *_, width in config.tables) + 5
        self.look = nn.Sequential(nn.Linear(2 * BANDS * channels + 1 + text, 64), nn.ReLU(), nn.Linear(64, config.look))
        # what means do not tell, such as rain before dark walls; starts as nothing
        self.sight = nn.Sequential(
            nn.Conv2d(channels, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, 2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.glance = nn.Linear(2 * 48, config.look)
        nn.init.zeros_(self.glance.weight)
        nn.init.zeros_(self.glance.bias)
        self.sky = nn.Linear(text, LIGHTS + WEATHERS)  # which of them a text tells of, where there is no picture yet
        self.register_buffer("skies", torch.zeros(LIGHTS, WEATHERS, config.look))
        self.register_buffer("views", torch.zeros(towns * VIEWS, 3))  # each in its own town's coordinates
        self.where = nn.Linear(text, towns * VIEWS)
        nn.init.constant_(self.where.bias[VIEWS:], UNKNOWN)
        self.paint = nn.Sequential(
            nn.Linear(inputs * config.rays**2 + config.look, config.width), nn.ReLU(),
            nn.Linear(config.width, config.width), nn.ReLU(),
        )  # fmt: skip
        self.blend = nn.Conv2d(config.width, config.width, 3, padding=1)  # of neighbouring tokens
        self.head = nn.Linear(config.width, channels)

    def stand(self, distance: Tensor, bricks: Tensor | None = None, town: int = 0) -> None:
        """Puts where things stand in a town: `distance` uint8 [X, H, Z], in steps of `UNIT` metres from each voxel to the nearest
        solid, 0 in solid ones and PARTLY in those whose solid parts are the bits of `bricks` int64 [n], in the order in which these
        voxels lie in memory (bit (x fine + height) fine + z for the part at x, height, z of `fine` each way). ValueError for more
        bricks than there is room for."""
        own = self.rows(town)
        if bricks is not None and self.bricks is not None:
            before, until, total = (int((self.distance[:end] == PARTLY).sum()) for end in (own.start, own.stop, None))
            kept = torch.cat([self.bricks[:before], bricks.to(self.bricks.device), self.bricks[until:total]])
            if len(kept) > len(self.bricks):
                raise ValueError(f"{len(kept)} voxels are solid in part, places.bricks is {len(self.bricks)}: raise it")
            self.bricks[: len(kept)] = kept
        self.distance[own] = distance
        self.number_bricks()

    def rows(self, town: int) -> slice:
        """The rows of `distance` and `walkable` that are a town's."""
        cells = self.distance.shape[2]
        return slice(town * cells, (town + 1) * cells)

    def known(self, town: int) -> bool:
        """Whether anything is known to stand in a town."""
        return bool((self.distance[self.rows(town)] < 255).any())

    def number_bricks(self) -> None:
        """Sets `field`, which says where distances are and where bricks: the number of each below zero."""
        partly = self.distance == PARTLY
        slot = partly.flatten().cumsum(0, dtype=torch.int32).view(partly.shape)
        self.field = torch.where(partly, -slot, self.distance.int())

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

    def walk(self, place: Tensor, displacement: Tensor) -> Tensor:
        """How far one gets: displacement [B, T, 2] (metres since the block's start) from place [B, 2], stopped by what cannot be
        walked on, one axis at a time, so that one slides along walls."""
        now, ways = torch.zeros_like(place), []
        lost = ~self.free(place)  # somewhere nobody ever walked: let them go
        for step in torch.diff(displacement, dim=1, prepend=now[:, None]).unbind(1):
            for axis in (0, 1):
                moved = now.clone()
                moved[:, axis] += step[:, axis]
                now = torch.where((self.free(place + moved) | lost)[:, None], moved, now)
            ways.append(now)
        return torch.stack(ways, dim=1)

    def free(self, place: Tensor) -> Tensor:
        """Whether walkers came by [B] at places [B, 2]."""
        x, z = torch.remainder((place / self.config.cell).floor().long(), self.walkable.shape[1]).unbind(-1)
        return self.walkable[self.town(place) * self.walkable.shape[1] + x, z]

    def town(self, place: Tensor) -> Tensor:
        """The number [...] int64 of the town that places [..., 2] are in."""
        return (place[..., 0] / (APART * self.config.period)).round().long().clamp(0, len(self.config.towns) - 1)

    def free_sight(self, place: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
        """Metres of sight [B, n] float64 from places [B, 2] towards yaw [B, n] (radians) that no house ends, and if one ends it."""
        direction = torch.stack([yaw.sin(), torch.zeros_like(yaw), yaw.cos()], dim=-1).float()
        origin = self._origin(place, OVERHEAD)[:, None].expand_as(direction)
        away, met = self.trace(origin, direction)
        return away.double(), met

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
        return torch.minimum(away, _to_ground(origin, upward)).clamp(max=FARTHEST)

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

    def trace(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Metres along rays [..., 3] to the ground or something solid, and whether that is within `FARTHEST`: sphere tracing, then
        bisection between the last free point and the first solid one. Town n's x begin at n * `stride`."""
        shape, device = direction.shape[:-1], direction.device
        origin, direction = origin.reshape(-1, 3), direction.reshape(-1, 3)
        ground = _to_ground(origin, direction)
        away, outside = torch.full_like(ground, 0.1), torch.zeros_like(ground)
        hit = torch.zeros_like(ground, dtype=torch.bool)
        flying = torch.arange(len(ground), device=device)
        end = ground.clamp(max=FARTHEST)
        top = self.config.height - origin[:, 1]
        over = torch.where(direction[:, 1] > 0, top / direction[:, 1], end)  # above all is nothing
        for _ in range(ROUNDS):
            start, way, now, free_until = origin[flying], direction[flying], away[flying], outside[flying]
            for _ in range(STEPS):
                free, solid = self._meet(start + now[:, None] * way)
                free_until = torch.where(solid, free_until, now)
                now = now + torch.where(solid, 0.0, self._step(free))
            away[flying], outside[flying], hit[flying] = now, free_until, solid
            if not away.is_meta:  # plans count the dearer case
                flying = flying[~solid & (now < torch.minimum(end, over)[flying])]
            if not len(flying):
                break
        found = hit.nonzero()[:, 0] if not hit.is_meta else flying
        start, way, far = origin[found], direction[found], away[found]
        near = torch.maximum(outside[found], far - 2 * self.config.cell)  # no step goes deeper
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            _, inside = self._meet(start + middle[:, None] * way)
            near, far = torch.where(inside, near, middle), torch.where(inside, middle, far)
        away[found] = far
        hit[flying] = True  # along a wall: near enough
        away = torch.where(hit, torch.minimum(away, end), end).view(shape)
        return away, away < FARTHEST

    def _origin(self, place: Tensor, height: float) -> Tensor:
        """Points [..., 3] (x, height, z) so many metres above places [..., 2]: on the torus in double precision, since a world may
        have walked far, then in float32."""
        x, z = torch.remainder(place, self.config.period).float().unbind(-1)
        return torch.stack([x + self.town(place) * self.stride, torch.full_like(x, height), z], dim=-1)

    def _met_town(self, x: Tensor) -> Tensor:
        """The number [...] int64 of the town that points of rays at x [...] (metres) are in."""
        number = ((x + (self.stride - self.config.period) / 2) / self.stride).floor()
        return number.clamp(0, len(self.config.towns) - 1).long()

    def _step(self, free: Tensor) -> Tensor:
        """Metres that sphere tracing goes on where `_meet` says `free`."""
        cell = self.config.cell
        return torch.where(free > 0, (free - 0.5 * cell).clamp(min=0.3 * cell), 0.8 * cell / self.config.fine)

    def _meet(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Metres from the middle of a point's voxel to the nearest that is solid at least in part, 0 inside; whether the point is
        in something solid."""
        (_, levels, cells), fine = self.field.shape, self.config.fine
        units = point / self.config.cell
        low = units.floor()
        around = low - (low / cells).floor() * cells  # int64 remainders take several times as long
        x, h, z = around[..., 0].long(), low[..., 1].long(), around[..., 2].long()
        x = self._met_town(point[..., 0]) * cells + x
        found = self.field.view(-1)[(x * levels + h.clamp(0, levels - 1)) * cells + z]
        found = torch.where(h >= levels, found.clamp(min=round(2 / UNIT)), found)
        free = found.clamp(min=0) * UNIT
        if self.bricks is None:
            return free, free == 0
        solid, partly = found == 0, found < 0
        if not found.is_meta:  # few are
            some = partly.nonzero(as_tuple=True)
            x, h, z = ((units[some] - low[some]) * fine).long().unbind(-1)
            solid[some] = (self.bricks[-1 - found[some]] >> ((x * fine + h) * fine + z)) & 1 > 0
        return free, solid

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


def _to_ground(origin: Tensor, direction: Tensor) -> Tensor:
    """Metres along rays [..., 3] to the ground; inf for those that do not go down."""
    return torch.where(direction[..., 1] < 0, -origin[..., 1] / direction[..., 1], torch.inf)

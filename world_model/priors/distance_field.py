"""Where something solid stands in towns: the distance from every voxel to the nearest solid, on a torus for each town.

Voxels that are solid only in part have bricks, of finer ones. Towns lie on one plane, so far apart that nobody walks from one to
another: where somebody stands says in which town.

Shapes: B worlds, T views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from world_model.priors.config import PlacesConfig

UNIT = 0.125  # metres of one step of the stored distances
PARTLY = 1  # the stored distance of a voxel that is solid in part: bits of a brick say where
STEPS, ROUNDS = 8, 6  # of sphere tracing, in rounds after which rays that met something rest
HALVINGS = 5  # of the last step
FARTHEST = 90.0  # metres a ray is followed
APART = 2**20  # towns' sides between the middles of two towns
OVERHEAD = 7.5  # metres up where only houses end the sight: above trees and lamps, below roofs


class DistanceField(nn.Module):
    """What rays and walkers meet in the known towns.

    A town is a torus of `period` x `period` metres; a world's place (x, z) is in its coordinates, town n's x from
    n * APART * period on. At first nothing is solid and everything can be walked on.
    """

    distance: Tensor
    bricks: Tensor | None
    field: Tensor
    walkable: Tensor

    def __init__(self, config: PlacesConfig) -> None:
        super().__init__()
        self.config = config
        cells, levels, towns = round(config.period / config.cell), round(config.height / config.cell), len(config.towns)
        self.stride = config.period * math.ceil(1 + 4 * FARTHEST / config.period)  # between towns' rays, in float32
        self.register_buffer("distance", torch.full((towns * cells, levels, cells), 255, dtype=torch.uint8))
        self.register_buffer("bricks", torch.zeros(config.bricks, dtype=torch.int64) if config.bricks else None)
        self.register_buffer("field", self.distance.int(), persistent=False)
        self.register_load_state_dict_post_hook(lambda places, _: places.number_bricks())
        self.register_buffer("walkable", torch.ones(towns * cells, cells, dtype=torch.bool))

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

    def trace(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Metres along rays [..., 3] to the ground or something solid, and whether that is within `FARTHEST`: sphere tracing, then
        bisection between the last free point and the first solid one. Town n's x begin at n * `stride`."""
        shape, device = direction.shape[:-1], direction.device
        origin, direction = origin.reshape(-1, 3), direction.reshape(-1, 3)
        ground = to_ground(origin, direction)
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


def to_ground(origin: Tensor, direction: Tensor) -> Tensor:
    """Metres along rays [..., 3] to the ground; inf for those that do not go down."""
    return torch.where(direction[..., 1] < 0, -origin[..., 1] / direction[..., 1], torch.inf)

"""Events: which kind a text tells of, and what it brings into the view, learnt by heart like the town (places.py).

All of it is learnt by train.events. A text's mean token is read by a softmax regression and by how alike it is to known phrasings;
words that are taken for a kind are then heard as that kind's best known wording, so that unseen phrasings are understood as the
text encoder understands them. A table says
where the thing that an event brings is at each moment, another where in the town things go along its streets. Its looks are a
picture with transparency, larger than life, that always faces the viewer (a billboard): a mixture of a few, by moment and by the
side it is seen from, in the light of the place. Where a thing stands is chosen when the event begins, as people choose where to
look: in the freest direction ahead. The DiT starts from the view with the thing in it, and is free to disagree.

Shapes: B worlds, T views, h x w tokens, H x W pixels, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.config import ModelConfig
from world_model.priors.config import events_of, places_of
from world_model.priors.geometry import camera_rays, camera_to_world
from world_model.priors.places import Places
from world_model.retrieval import View
from world_model.text import mean_token, scaled
from world_model.vae import VideoVAE

GLANCES = tuple(math.radians(turn) for turn in (-36, -27, -18, -9, 0, 9, 18, 27, 36))
DETOUR = 6.0  # metres of free sight that a radian to the side must gain
CLEARANCE, NEAREST = 2.5, 3.0  # metres kept from what is solid behind a thing, and from the viewer
WALL, TOO_NEAR = 13.0, 5.0  # metres to the facade that is liked best, and to one that is not taken
EXTENT, TEXELS = 8.0, 48  # metres from a billboard's middle to its edge, if nothing is known, and its texels each way
BLUR = 0.5  # metres within which what is solid begins to hide a thing
MOMENTS, FADED = 96, 16  # latent frames of an event that are told apart; later ones repeat those after the first FADED
NOTHING = -1  # kind of a text that tells of no known event
LANES = 8  # that a town has at most for each heading
PHRASINGS = 2048  # that are kept at most
ALIKE = 0.05  # cosine by which a phrasing must be nearer to count e times as much


@dataclass(frozen=True)
class Across:
    """Rays [B, T, H, W] of pictures and things: metres on the ground to where a ray passes the thing's axis, metres beside the
    thing's middle and above it there, and metres on the ground that a ray covers in one of its own; and things from viewers:
    distance [B, T] on the ground (metres), bearing [B, T, 2] (cosine and sine, from the thing's heading)."""

    nearest: Tensor
    beside: Tensor
    above: Tensor
    level: Tensor
    distance: Tensor
    bearing: Tensor


class Events(nn.Module):
    """The known kinds of events. Before training every text is taken for the first kind, and things cover next to nothing."""

    wording: Tensor
    phrasings: Tensor
    phrasing_kind: Tensor
    middle: Tensor
    path: Tensor
    extent: Tensor
    lanes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """For a model whose scene prior has events and places."""
        super().__init__()
        known, places = events_of(config), places_of(config)
        assert known is not None and places is not None
        text, channels = config.text, config.dit.latent_channels
        self.camera, self.patch = config.camera, config.vae.spatial_stride
        self.config = known
        kinds, width = len(self.config.kinds), self.config.width
        self.kind = nn.Linear(text.dim, kinds + 1)  # the last: no event
        nn.init.zeros_(self.kind.weight)
        nn.init.zeros_(self.kind.bias)
        self.register_buffer("wording", torch.zeros(kinds, text.event_tokens, text.dim))
        # directions of known phrasings' mean tokens from the middle of all, and their kinds: one more than there are for none,
        # -1 where no phrasing is kept
        self.register_buffer("phrasings", torch.zeros(PHRASINGS, text.dim))
        self.register_buffer("phrasing_kind", torch.full((PHRASINGS,), -1))
        self.register_buffer("middle", torch.zeros(text.dim))
        # where a thing is at each moment: metres forward, to the right and up from where it stands
        self.register_buffer("path", torch.zeros(kinds, MOMENTS, 3))
        self.register_buffer("extent", torch.full((kinds,), EXTENT))
        # metres across the town at which things go along its streets, for headings of 0 to 3 quarter turns; inf: no further lane
        self.register_buffer("lanes", torch.full((4, LANES), torch.inf))
        self.period = places.period
        self.mixtures = nn.Parameter(0.1 * torch.randn(kinds, MOMENTS, self.config.looks))
        self.sides = nn.Parameter(torch.zeros(kinds, 2, self.config.looks))
        self.looks = nn.Parameter(0.02 * torch.randn(kinds, self.config.looks, 4, TEXELS, TEXELS))
        with torch.no_grad():
            self.mixtures[..., 0] = 1
            self.looks[:, 0, 3] = -4
        last = nn.Linear(width, 7)
        self.light = nn.Sequential(nn.Linear(channels + 1 + kinds, width), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def read(self, words: Tensor) -> Tensor:
        """Kind [B] int64 of texts' tokens [B, N, D], zero-padded; NOTHING for no text and for one of no known event."""
        mean = mean_token(words.float())
        regressed = self.kind(scaled(mean).to(self.kind.weight.dtype)).float().log_softmax(dim=-1)
        found = (regressed + self.alike(mean).log_softmax(dim=-1)).argmax(dim=-1)
        none = (found == len(self.config.kinds)) | (mean == 0).all(dim=-1)
        return torch.where(none, torch.full_like(found, NOTHING), found)

    def alike(self, mean: Tensor) -> Tensor:
        """How alike mean tokens [B, D] are to the phrasings of each kind, and to those of none: [B, kinds + 1], in logarithms."""
        members = F.one_hot(self.phrasing_kind + 1, len(self.config.kinds) + 2)[:, 1:].float()
        cosine = self.directions(mean) @ self.phrasings.float().T
        return ((cosine / ALIKE).exp() @ members / members.sum(dim=0).clamp(min=1)).clamp(min=1e-12).log()

    def directions(self, mean: Tensor) -> Tensor:
        """Of mean tokens [..., D] from the middle of all known ones, at length 1."""
        return F.normalize(F.normalize(mean, dim=-1) - self.middle.float(), dim=-1)

    def keep_phrasings(self, mean: Tensor, kind: Tensor) -> None:
        """Takes mean tokens [n, D] of known phrasings and their kind [n]. ValueError for more than `PHRASINGS`."""
        if len(mean) > PHRASINGS:
            raise ValueError(f"{len(mean)} phrasings are more than the {PHRASINGS} that can be kept")
        self.middle.copy_(F.normalize(mean, dim=-1).mean(dim=0))
        self.phrasings[: len(mean)] = self.directions(mean)
        self.phrasing_kind[: len(mean)] = kind

    def heard(self, words: Tensor, kind: Tensor) -> Tensor:
        """`words` [B, N, D], as the known wording of their `kind` [B] if they have one."""
        known = (kind >= 0)[:, None, None]
        return torch.where(known, self.wording[kind.clamp(min=0)].to(words.dtype), words)

    def begin(self, kind: Tensor, places: Places, place: Tensor, yaw: Tensor) -> Tensor:
        """Where things of events that begin now stand: [B, 3] float64 (x, z; metres; heading, radians), for viewers at `place`
        [B, 2] looking to `yaw` [B]. Of the glances ahead the freest; for kinds that need one, a facade."""
        turns, kinds = yaw.new_tensor(GLANCES), self.config.kinds
        glances, number = yaw[:, None] + turns, kind.clamp(min=0)
        away, met = places.free_sight(place, glances)
        ahead = place.new_tensor([metres for _, metres, _ in kinds])[number, None]
        reach = torch.minimum(ahead, away - CLEARANCE)
        best = (reach - DETOUR * turns.abs()).argmax(dim=1, keepdim=True)
        towards, reach = glances.gather(1, best)[:, 0], reach.gather(1, best)[:, 0].clamp(min=NEAREST)
        street = self._where("street")[number]
        heading, stand = torch.where(street, quarter(yaw), yaw), place + reach[:, None] * _direction(towards)
        open_to = torch.cat(
            [torch.where(street[:, None], self.in_lane(stand, heading), stand), heading[:, None]], dim=1
        )
        usable = met & (away > TOO_NEAR)
        cost = torch.where(usable, (away - WALL).abs() + DETOUR * turns.abs(), torch.full_like(away, torch.inf))
        best = cost.argmin(dim=1, keepdim=True)
        facade = _facade(places, place, glances.gather(1, best)[:, 0], away.gather(1, best)[:, 0])
        wanted = self._where("facade")[number] & usable.any(dim=1)
        return torch.where(wanted[:, None], facade, open_to)

    def in_lane(self, stand: Tensor, heading: Tensor) -> Tensor:
        """Places [B, 2] moved across the nearest known lane of quarter turns `heading` [B]; as they are where none is known."""
        turns = (heading / (math.pi / 2)).round().long() % 4
        across = (turns % 2)[:, None]  # streets that run along z have their lanes at an x, others at a z
        own = stand.gather(1, across)
        offset = (
            torch.remainder(self.lanes[turns].to(stand.dtype) - own + self.period / 2, self.period) - self.period / 2
        )
        offset = torch.where(offset.isfinite(), offset, torch.inf)
        best = offset.gather(1, offset.abs().argmin(dim=1, keepdim=True))
        return stand.scatter(1, across, own + torch.where(best.isfinite(), best, 0.0))

    def _where(self, how: str) -> Tensor:
        """Which kinds [kinds] take place there."""
        return torch.tensor([own == how for *_, own in self.config.kinds], device=self.path.device)

    def things(self, kind: Tensor) -> Tensor:
        """Whether kinds [B] bring a thing."""
        metres = torch.tensor([metres for _, metres, _ in self.config.kinds], device=kind.device)
        return (kind >= 0) & (metres[kind.clamp(min=0)] > 0)

    def forward(
        self,
        kind: Tensor,
        viewers: View,
        away: Tensor,
        course: Tensor,
        age: Tensor,
        view: Tensor,
        centre: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, T, H, W] of what events show, and the share [B, 1, T, H, W] of each pixel that they cover.

        kind [B]; viewers: T cameras a world, which see as far as `away` (Places.clear_sight); course [B, 3] of `begin`;
        age [B, T] int64 latent frames since; view [B, C, T, h, w]: latents of the place without them; centre [B, T, 3] of the
        things if not as `path` has it.
        """
        number, views = self.looks.dtype, viewers.yaw.shape[1]
        height, width = (side * self.patch for side in view.shape[3:])
        known, moment = kind.clamp(min=0), moments(age)
        at = self.across(known, viewers, course, age, (height, width), centre)
        grid = torch.stack([at.beside, -at.above], dim=-1) / self.extent[known].float()[:, None, None, None, None]
        mixture = self.mixtures[known[:, None], moment] + torch.einsum(
            "bts,bsl->btl", at.bearing.to(number), self.sides[known]
        )
        look = torch.einsum("btl,blchw->btchw", mixture, self.looks[known])
        seen = F.grid_sample(look.flatten(0, 1).float(), grid.flatten(0, 1), align_corners=False)
        colour, share = seen[:, :3].unflatten(0, (-1, views)), seen[:, 3:].unflatten(0, (-1, views))
        told = F.one_hot(known, len(self.config.kinds))[:, None].expand(-1, views, -1)
        mean = view.float().mean(dim=(3, 4)).transpose(1, 2)
        seen_from = torch.cat([mean, at.distance[..., None].log(), told], dim=-1)
        lit = self.light(seen_from.to(number)).float()[..., None, None]
        colour = colour * lit[:, :, :3].exp() + lit[:, :, 3:6]
        solid = F.interpolate(away.float(), (height, width), mode="bilinear", align_corners=False) * at.level
        there = (at.nearest > BLUR) & (grid.abs() < 1).all(dim=-1) & self.things(kind)[:, None, None, None]
        share = (share + lit[:, :, 6:]).sigmoid()[:, :, 0] * there * ((solid - at.nearest) / BLUR).sigmoid()
        return colour.transpose(1, 2), share[:, None]

    def across(
        self,
        kind: Tensor,
        viewers: View,
        course: Tensor,
        age: Tensor,
        size: tuple[int, int],
        centre: Tensor | None = None,
    ) -> Across:
        """Where the rays of pictures of `size` pass the things of known `kind` [B]; other arguments as for `forward`."""
        row = self.path[kind[:, None], moments(age)] if centre is None else centre
        heading = course[:, None, 2].float()
        sin, cos, forward, right, up = heading.sin(), heading.cos(), *row.float().unbind(-1)
        # the thing from the viewer, on the ground
        to_x = forward * sin + right * cos - (viewers.position[..., 0] - course[:, None, 0]).float()
        to_z = forward * cos - right * sin - (viewers.position[..., 1] - course[:, None, 1]).float()
        rays = camera_rays(*size, self.camera, viewers.yaw.device)
        turned = camera_to_world(viewers.yaw.float(), viewers.pitch.float())
        direction = torch.einsum("btij,hwj->bthwi", turned, rays)
        x, down, z = direction.unbind(-1)
        level = torch.hypot(x, z).clamp(min=0.05)
        distance = torch.hypot(to_x, to_z).clamp(min=0.1)
        bearing = torch.stack([to_x * sin + to_z * cos, to_x * cos - to_z * sin], dim=-1) / distance[..., None]
        to_x, to_z = to_x[..., None, None], to_z[..., None, None]
        nearest = (to_x * x + to_z * z) / level
        beside = (to_z * x - to_x * z) / level
        above = self.camera.eye_height - down / level * nearest - up[..., None, None]
        return Across(nearest, beside, above, level, distance, bearing)

    def over(self, vae: VideoVAE, view: Tensor, drawn: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
        """The latents `view` [B, C, T, h, w] with what `forward` returned drawn over them, the same where that covers nothing; and
        the pictures [B, 3, K, H, W] that these are of."""
        plain = vae.decode(view)[0]
        stride = plain.shape[2] // view.shape[2]
        drawn, share = (part.repeat_interleave(stride, dim=2) for part in (drawn, covered))
        touched = F.max_pool3d(covered, (1, self.patch, self.patch)) > 0
        pictures = torch.lerp(plain, drawn, share).clamp(-1, 1)
        return torch.where(touched, vae.encode(pictures), view), pictures


def quarter(yaw: Tensor) -> Tensor:
    """The quarter turn nearest to `yaw`, radians: streets run that way."""
    return (yaw / (math.pi / 2)).round() * (math.pi / 2)


def moments(age: Tensor) -> Tensor:
    """Which of the MOMENTS an event is in after `age` int64 latent frames."""
    return torch.where(age < MOMENTS, age, FADED + (age - FADED) % (MOMENTS - FADED)).clamp(min=0)


def _facade(places: Places, place: Tensor, towards: Tensor, reach: Tensor) -> Tensor:
    """What is met `reach` [B] metres from places [B, 2] in the direction `towards` [B]: [B, 3] (x, z; the direction it faces).

    Facades look along the axes of the town: away from the longer side of what two neighbouring rays met, to the viewer.
    """
    corner, aside = place + reach[:, None] * _direction(towards), towards + 0.02
    front = place + places.free_sight(place, aside[:, None])[0] * _direction(aside) - corner
    back = -_direction(towards)
    along_x = front[:, 0].abs() > front[:, 1].abs()
    facing = torch.where(along_x, torch.atan2(0 * back[:, 0], back[:, 1]), torch.atan2(back[:, 0], 0 * back[:, 1]))
    return torch.cat([corner, facing[:, None]], dim=1)


def _direction(yaw: Tensor) -> Tensor:
    return torch.stack([yaw.sin(), yaw.cos()], dim=-1)

"""A recording as latents on one device, and training windows drawn from it by index.

A window is what a world has after `age` blocks: the packed history that `append_tiers` would hold, the stretch of past that the
channel path sums up, the action, the text and the true next block. No loop over worlds: a window is one `index_select`.

Legend: E episodes, S steps of all episodes, N latent frames of all, B worlds of a batch, C channels, K latent frames of a block,
h x w latent size, F frames that a history holds, P frames of past for the channel path, A numbers of an encoded action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from world_model.conditions import Target
from world_model.config import ModelConfig, Tiers
from world_model.homography import turn
from world_model.tscm import History


@dataclass(frozen=True)
class StepTexts:
    """Encoded texts, and which of them each step is told."""

    tokens: Tensor  # [n, tokens, text_dim]
    step: Tensor  # [S] int64 row of `tokens`


@dataclass(frozen=True)
class EventTexts(StepTexts):
    """Events by step and captions by episode, float16; row 0 is no text."""

    episode: Tensor  # [E] int64 row of `tokens` that describes the episode

    def of_episodes(self, episodes: Tensor) -> Tensor:
        """[B, tokens, text_dim] float32: the captions of episodes [B]."""
        return self.tokens[self.episode[episodes]].float()

    def extended(self, other: EventTexts) -> EventTexts:
        """These texts, and those of another recording behind them."""

        def joined(mine: Tensor, others: Tensor) -> Tensor:
            return torch.cat([mine, torch.where(others > 0, others + len(self.tokens), others)])

        tokens = torch.cat([self.tokens, other.tokens])
        return EventTexts(tokens, joined(self.step, other.step), joined(self.episode, other.episode))


@dataclass(frozen=True)
class LatentSet:
    """A recording, encoded. An episode of n steps has 1 + n * K rows of `latents`: its first picture, then its blocks.

    `still` names, for each step, the row that shows the picture before it standing still: where one latent is one frame, that is
    the frame itself; else such rows follow those of the episodes.
    """

    latents: Tensor  # [N, C, h, w] float16 or float32
    angles: Tensor  # [N, 2] float32 yaw and pitch, radians; zeros where nobody recorded them
    first: Tensor  # [E] int64 row of an episode's first picture
    begin: Tensor  # [E + 1] int64 step number at which an episode begins; the last entry is S
    still: Tensor  # [S] int64
    action: Tensor  # [S, A] float32, as `ActionSpec.encode` or the mean caption token
    action_texts: StepTexts  # float32 captions of actions; of worlds without them tokens are [1, 0, text_dim]
    event_texts: EventTexts
    reward: Tensor  # [S] float32
    terminated: Tensor  # [S] float32, 0 or 1
    # [S, K, 3] float32: where the camera was in each frame of a step, relative to the frame before the step and in the axes of the
    # episode, as a network said last (`Windows.keep_travel`); None where nobody says so
    travelled: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.still)

    def extended(self, other: LatentSet) -> LatentSet:
        """This recording, and another behind it: rows, steps and episodes of this one keep their numbers."""
        rows, actions, ways = len(self.latents), self.action_texts, (self.travelled, other.travelled)
        joined = {
            name: torch.cat([getattr(self, name), getattr(other, name)])
            for name in ("latents", "angles", "action", "reward", "terminated")
        }
        return LatentSet(
            **joined,
            first=torch.cat([self.first, other.first + rows]),
            begin=torch.cat([self.begin, other.begin[1:] + self.begin[-1]]),
            still=torch.cat([self.still, other.still + rows]),
            action_texts=replace(actions, step=torch.cat([actions.step, other.action_texts.step])),
            event_texts=self.event_texts.extended(other.event_texts),
            travelled=torch.cat([way for way in ways if way is not None])
            if all(way is not None for way in ways)
            else None,
        )

    def places(self, spans: Spans, number: Tensor) -> Tensor | None:
        """Where the camera was in frames `number` [B, n] since `spans` began, [B, n, 3] float64 relative to where they began and in
        the axes of the episode; the start for numbers below 0. What was said of each step is added up (odometry)."""
        if self.travelled is None:
            return None
        frames = self.travelled.shape[1]
        step = (spans.start[:, None] + number.clamp(min=0) // frames).clamp(max=self.steps - 1)
        ends = self.travelled[:, -1].double().cumsum(dim=0) - self.travelled[:, -1]
        place = ends[step] - ends[spans.start, None] + self.travelled[step, number % frames]
        return place * (number >= 0)[..., None]

    @cached_property
    def changes(self) -> Tensor:
        """[n] int64 steps before which the text changed, and the steps after those; those with a text that opens an episode."""
        text = self.event_texts.step
        before = torch.cat([text[:1] * 0, text[:-1]])
        before[self.begin[:-1]] = 0
        changed = text != before
        after = changed.roll(1)
        after[self.begin[:-1]] = False
        return (changed | after).nonzero()[:, 0]

    def draw(
        self, count: int, longest: int, stream: torch.Generator, fresh: float = 0.25, changed: float = 0.0
    ) -> Spans:
        """`count` spans to train on: uniform over all steps, ages uniform up to `longest` blocks; a share `fresh` is younger
        than eight blocks, since every world is at first. A share `changed` is drawn from `changes`, where there are any: what
        a text means is seen there; later the history shows it."""
        device = self.latents.device
        step = torch.randint(self.steps, (count,), generator=stream, device=device)
        if changed and len(self.changes):
            told = self.changes[torch.randint(len(self.changes), (count,), generator=stream, device=device)]
            step = torch.where(torch.rand(count, generator=stream, device=device) < changed, told, step)
        episode = torch.searchsorted(self.begin, step, right=True) - 1
        block = step - self.begin[episode]
        uniform, young = (torch.rand(count, generator=stream, device=device) for _ in range(2))
        limit = torch.where(young < fresh, 7, longest).minimum(block)
        age = (uniform * (limit + 1)).long().minimum(limit)
        return Spans(episode, step - age, age)


@dataclass(frozen=True)
class Spans:
    """What worlds have lived through: their episode, the step at which they started, and blocks lived since. Each [B] int64."""

    episode: Tensor
    start: Tensor
    age: Tensor

    @property
    def step(self) -> Tensor:
        """[B] number of the step that comes next."""
        return self.start + self.age

    def __len__(self) -> int:
        return len(self.age)

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.episode, self.start, self.age


@dataclass(frozen=True)
class Window:
    """What the next blocks of B worlds are trained from."""

    history: History
    past: History
    target: Target
    data: Tensor  # [B, C, K, h, w] float32, the true block
    context: Tensor  # [B, event and action tokens, text_dim] float32
    action: Tensor  # [B, A] float32


def history_frames(tiers: Tiers) -> int:
    """F: frames that a history of these tiers holds."""
    return 1 + tiers.old[0] + tiers.recent_frames


def held_frames(tiers: Tiers, lived: Tensor, stream: torch.Generator) -> Tensor:
    """[B, F] numbers of the frames that worlds hold after `lived` [B] latent frames, as `append_tiers` keeps them.

    Numbers below 0 are copies of the start picture. Old frames are a uniform draw, without repetition, from all that left the
    recent tiers; the copies that they replace come first.
    """
    frames, (old, _), device = history_frames(tiers), tiers.old, lived.device
    recent = lived[:, None] + torch.arange(-tiers.recent_frames, 0, device=device)
    copies = torch.arange(-frames, -frames + 1 + old, device=device).expand(len(lived), -1)
    left = (lived - tiers.recent_frames).clamp(min=0)
    drawn: list[Tensor] = []
    for slot in range(old):  # Floyd's algorithm: each slot adds one number that is not yet drawn
        highest = left - old + slot
        number = (torch.rand(len(lived), generator=stream, device=device) * (highest + 1)).long()
        taken = (
            torch.stack([number == other for other in drawn]).any(dim=0)
            if drawn
            else torch.zeros_like(left, dtype=torch.bool)
        )
        number = torch.where(taken, highest, number)
        number = torch.where(left > old, number, slot)
        drawn.append(number)
    olds = torch.stack(drawn, dim=1) if old else recent[:, :0]
    olds = torch.where(torch.arange(old, device=device) < left[:, None], olds, copies[:, 1:])
    return torch.cat([copies[:, :1], olds, recent], dim=1)


class Windows:
    """Windows of one model's shape over a `LatentSet`; `past_blocks` of history are summed up by the channel path."""

    def __init__(self, config: ModelConfig, data: LatentSet, past_blocks: int = 16) -> None:
        tiers, channel = config.dit.history.packing, config.dit.history.channel
        if not isinstance(tiers, Tiers):
            raise ValueError(f"{config.name}: windows are drawn for histories of constant size, packing must be tiers")
        depth = channel.patch[0] if channel else 1
        if config.block_latents % depth or config.start_latents % depth:
            raise ValueError(
                f"{config.name}: blocks of {config.block_latents} and starts of {config.start_latents} latent frames must be whole "
                f"kernels of the channel path, which span {depth} frames"
            )
        self.config, self.data, self.tiers = config, data, tiers
        self.past_frames = past_blocks * config.block_latents
        self._offsets = torch.arange(config.block_latents, device=data.latents.device)

    def truth(self, spans: Spans, stream: torch.Generator, described: float = 0.0) -> Window:
        """Windows whose history is the recording's own. A share `described` of worlds without an event is told the caption."""
        data = self.data
        return self._window(data.latents, self._begun(spans), data.still[spans.start], spans, stream, described)

    def recorded(self, spans: Spans, blocks: int) -> Tensor:
        """Latents [B, C, blocks * K, h, w] that were recorded after `spans` began; after the end of all the last one."""
        number = torch.arange(blocks * self.config.block_latents, device=self._offsets.device)
        rows = (self._begun(spans)[:, None] + 1 + number).clamp(max=len(self.data.latents) - 1)
        return self.data.latents[rows].transpose(1, 2).float()

    def clip(self, spans: Spans, before: int) -> Tensor:
        """Latents [B, C, before + K, h, w] that were recorded around the next block: `before` frames of its past, and the block.
        What a world has from before its start is its start picture."""
        number = (spans.age * self.config.block_latents)[:, None] + torch.arange(
            -before, self.config.block_latents, device=self._offsets.device
        )
        rows = torch.where(number >= 0, self._begun(spans)[:, None] + 1 + number, self.data.still[spans.start][:, None])
        return self.data.latents[rows].transpose(1, 2).float()

    def own(self, latents: Tensor, rows: Tensor, spans: Spans, stream: torch.Generator) -> Window:
        """Windows whose history is a rollout: `latents` [P, 1 + frames, C, h, w] holds in row `rows` [B] a world's start
        picture and what was generated since. The true next block is the recording's."""
        base = rows * latents.shape[1]
        return self._window(latents.flatten(0, 1), base, base, spans, stream, 0.0)

    def keep_travel(self, spans: Spans, travelled: Tensor) -> None:
        """Keeps how far a network says the camera came in the next blocks of worlds, [B, K, 3] (`Camera.travelled`): later windows
        add it up."""
        assert self.data.travelled is not None
        yaw = self.data.angles[self._begun(spans), 0].double()
        self.data.travelled[spans.step] = torch.einsum("bij,bkj->bki", turn(yaw), travelled.detach().double()).float()

    def from_text(self, window: Window, spans: Spans, chosen: Tensor) -> Window:
        """`window` with the `chosen` [B] bool worlds as text starts (T2V): no past, and told the caption of their episode."""
        kept = ~chosen[:, None]
        context = window.context.clone()
        told = self.data.event_texts.of_episodes(spans.episode)
        context[:, : told.shape[1]] = torch.where(chosen[:, None, None], told, context[:, : told.shape[1]])
        history, past = (replace(part, present=part.present & kept) for part in (window.history, window.past))
        return replace(window, history=history, past=past, context=context)

    def _begun(self, spans: Spans) -> Tensor:
        """[B] rows of the last latent frame before `spans` began."""
        data = self.data
        return data.first[spans.episode] + (spans.start - data.begin[spans.episode]) * self.config.block_latents

    def _window(
        self, source: Tensor, base: Tensor, still: Tensor, spans: Spans, stream: torch.Generator, described: float
    ) -> Window:
        config, data = self.config, self.data
        lived = spans.age * config.block_latents
        begun = self._begun(spans)
        zero = data.angles[begun] * data.angles.new_tensor([1.0, 0.0])  # pitch has a zero of its own, the horizon

        def history(number: Tensor, absent_before: int, place: Tensor | None = None) -> History:
            """Frames `number` [B, n] of worlds, taken at `place`; what a world has from before its start is its start picture."""
            rows = torch.where(number >= 0, base[:, None] + 1 + number, still[:, None])
            latents = source[rows].transpose(1, 2).float()
            seen = data.angles[torch.where(number >= 0, begun[:, None] + 1 + number, begun[:, None])] - zero[:, None]
            present = number >= absent_before
            return History(latents, number, seen[..., 0].double(), seen[..., 1].double(), present, place)

        held = held_frames(self.tiers, lived, stream)
        place = data.places(spans, held)
        if place is not None:
            place = torch.einsum("bij,bnj->bni", turn(-zero[:, 0].double()), place)
        past = lived[:, None] + torch.arange(-self.past_frames, 0, device=lived.device)
        number = lived[:, None] + self._offsets
        true_rows = begun[:, None] + 1 + number
        turned = data.angles[true_rows] - zero[:, None]
        target = Target(yaw=turned[..., 0].double(), pitch=turned[..., 1].double(), frame=number)
        block = data.latents[true_rows].transpose(1, 2).float()
        events, actions = data.event_texts, data.action_texts
        text = events.step[spans.step]
        if described:
            told = torch.rand(len(spans), generator=stream, device=lived.device) < described
            text = torch.where(told & (text == 0), events.episode[spans.episode], text)
        context = torch.cat([events.tokens[text].float(), actions.tokens[actions.step[spans.step]]], dim=1)
        return Window(
            history(held, -history_frames(self.tiers), place),
            history(past, -config.start_latents),
            target,
            block,
            context,
            data.action[spans.step],
        )

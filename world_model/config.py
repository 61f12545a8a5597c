"""Every number of every model: frozen dataclasses and `PRESETS`. Sizes differ, code does not: nothing asks which preset it is.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from world_model.action_spaces import ActionSpec
from world_model.camera import CameraConfig
from world_model.checks import short
from world_model.priors.config import DEBUG_SCENE, KINDS, NESTED, STREET_SCENE, PriorConfig


@dataclass(frozen=True)
class Tiers:
    """Our history packing: a token count that is constant for ever.

    Newest to oldest, `recent` lists (frames, ratio): how many latent frames are packed with a kernel of (1, ratio*p, ratio*p).
    `initial` is the first frame's ratio; `old` is (count, ratio) of frames drawn uniformly from everything older than the tiers.
    """

    recent: tuple[tuple[int, int], ...] = ((2, 1), (4, 2), (8, 4))
    initial: int = 2
    old: tuple[int, int] = (4, 2)

    @property
    def recent_frames(self) -> int:
        return sum(count for count, _ in self.recent)


@dataclass(frozen=True)
class Retrieval:
    """A history of the first frame, the `recent` newest and the `retrieved` old ones that show most of what comes (WorldMem)."""

    recent: int = 2
    retrieved: int = 2


@dataclass(frozen=True)
class ChannelConfig:
    """The channel half of TSCM: all history compressed to `dim` channels, read by ReLU linear attention.

    `patch` is the (frames, rows, columns) kernel on history latents. `decay` multiplies the carried sums once per step of that
    kernel in time: 1.0 is the paper's plain sum, below 1 forgets with a half-life of log(.5)/log(decay) kernels.
    """

    dim: int = 96
    heads: int = 3
    patch: tuple[int, int, int] = (8, 4, 4)
    decay: float = 1.0


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer. Defaults are the released model's choices; `street` uses the options below them."""

    dim: int = 3072
    ffn_dim: int = 14336
    heads: int = 24
    layers: int = 30
    patch: tuple[int, int, int] = (1, 2, 2)
    latent_channels: int = 48
    text_dim: int = 4096  # 0: no text, and no cross-attention
    freq_dim: int = 256
    eps: float = 1e-6
    packing: Literal["released", "full"] | Tiers | Retrieval = "released"  # "full": every frame at the finest size
    channel: ChannelConfig | None = field(default_factory=ChannelConfig)
    history_attention: Literal["joint", "cached"] = "joint"
    prediction: Literal["velocity", "data"] = "velocity"  # what the network's output means (flow.py)
    # RoPE axes: "grid" (running frame, own row, own column; released), "centred" (frame, centre of the area in finest cells), or
    # "view_sphere" (frame, elevation, azimuth)
    positions: Literal["grid", "centred", "view_sphere"] = "grid"
    mlp_conv: bool = False  # depthwise 3x3 convolution between the two MLP layers
    activation: Literal["gelu_tanh", "relu_squared"] = "gelu_tanh"  # of the MLP; tanh is slow on a CPU
    screen_embedding: bool = False  # a learned vector per place on the screen; view-sphere RoPE needs it
    pooled_action: bool = False  # the action (mean caption token, or its encoding) joins the timestep embedding
    recent_frames: int = 0  # newest history frames whose latents are concatenated to the target's, as DIAMOND does
    residual: bool = False  # preconditioning: a data prediction starts from the newest history frame, not from zero
    # first layers, which alone read the history, do not see the noisy block and say how earlier frames move (appearance_flow.py);
    # 0: no such thing
    flow_layer: int = 0
    max_age: int = 1024  # frames; older history counts as this old

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class VAEConfig:
    """The video autoencoder. `kind` names its class in `vae.VAES`; the rest are its sizes."""

    kind: Literal["patch", "wan2.2"] = "wan2.2"
    spatial_stride: int = 16
    temporal_stride: int = 4
    latent_channels: int = 48
    width: int = 0  # channels of the convolutions ("patch": 0 for none); "wan2.2": at the encoder's finest scale
    depth: int = 0  # residual blocks at each scale
    decoder_width: int = 0  # channels at the decoder's finest scale ("wan2.2" only)


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder. Events and actions are encoded apart and padded with zeros to these lengths.

    `joined`: instead, `prefix`, action and event are one caption and fill both lengths together, as in the public demo of the
    released weights. The sizes below those are of encoders that come with a checkpoint ("umt5").
    """

    kind: Literal["minilm", "umt5", "hashed", "none"] = "umt5"
    dim: int = 4096
    event_tokens: int = 448
    action_tokens: int = 64
    joined: bool = False
    prefix: str = ""
    layers: int = 0
    heads: int = 0
    head_dim: int = 0
    ffn_dim: int = 0
    vocabulary: int = 0


@dataclass(frozen=True)
class SamplerConfig:
    """Few-step Euler sampler on the shifted rectified-flow schedule; the first block of a text start is dreamt in `start_steps` at
    `start_temperature`.

    `temperature` scales the initial noise: 1 samples what the model has learnt, lower keeps to what it is sure of, at the
    price of detail (0 is the same dream for every seed).
    """

    steps: int = 4
    shift: float = 7.0
    start_steps: int = 4
    temperature: float = 1.0
    start_temperature: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One world model. Derived sizes are properties; nothing else holds them."""

    name: str
    height: int
    width: int
    fps: int
    block_latents: int  # latent frames of one step
    start_latents: int  # copies of a start image, in latent frames
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    sampler: SamplerConfig = SamplerConfig()
    camera: CameraConfig = CameraConfig()
    action: ActionSpec = ActionSpec()
    priors: tuple[PriorConfig, ...] = ()  # none: the generator alone

    def __post_init__(self) -> None:
        rows, columns = (self.vae.spatial_stride * patch for patch in self.dit.patch[1:])
        if self.height % rows or self.width % columns or min(self.height, self.width) < 1:
            nearest = max(round(self.height / rows), 1) * rows, max(round(self.width / columns), 1) * columns
            raise ValueError(
                f"{self.name}: height x width must be a multiple of {rows} x {columns} pixels, one token of the network; "
                f"got {self.height} x {self.width}, the nearest that fits is {nearest[0]} x {nearest[1]}"
            )
        if self.dit.dim % self.dit.heads or self.dit.head_dim % 2:
            raise ValueError(f"{self.name}: {self.dit.heads} heads do not divide width {self.dit.dim} into even parts")
        if self.vae.latent_channels != self.dit.latent_channels or self.text.dim != self.dit.text_dim:
            raise ValueError(f"{self.name}: the DiT's channels must be those of its autoencoder and text encoder")

        c = self.dit
        if c.flow_layer and not (
            c.residual and c.recent_frames and c.history_attention == "cached" and c.flow_layer < c.layers
        ):
            raise ValueError(
                f"{self.name}: appearance flow is where a residual prediction starts from, after some of the layers; it needs "
                f"residual, recent_frames, cached history and flow_layer below {c.layers}, got flow_layer={c.flow_layer}"
            )
        if self.dit.residual and self.dit.prediction != "data":
            raise ValueError(
                f"{self.name}: residual preconditioning is of a data prediction; it needs prediction='data'"
            )
        if self.priors and self.dit.prediction != "data":
            raise ValueError(
                f"{self.name}: priors say where a data prediction starts from; they need prediction='data'"
            )

    @property
    def action_width(self) -> int:
        """Numbers by which an action reaches the timestep embedding: of its caption's mean token, or of `ActionSpec.encode`."""
        return self.dit.text_dim if self.action.kind == "first_person" else self.action.width

    @property
    def frames_per_block(self) -> int:
        """Pictures of one environment step."""
        return self.block_latents * self.vae.temporal_stride

    @property
    def latent_size(self) -> tuple[int, int]:
        """(rows, columns) of a latent frame."""
        return self.height // self.vae.spatial_stride, self.width // self.vae.spatial_stride

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of the predicted tokens."""
        rows, columns = self.latent_size
        return self.block_latents // self.dit.patch[0], rows // self.dit.patch[1], columns // self.dit.patch[2]

    def resized(self, size: tuple[int, int]) -> ModelConfig:
        """The same model for pictures of size (height, width), in pixels.

        Raises TypeError for what is no pair of whole numbers, ValueError for a size off the grid of tokens, or for a model that
        has learnt one size only.
        """
        if not isinstance(size, Sequence) or len(size) != 2 or any(type(side) is not int for side in size):
            raise TypeError(f"size must be (height, width) in whole pixels, got {short(size)}")
        if tuple(size) != (self.height, self.width) and self.dit.screen_embedding:
            raise ValueError(
                f"{self.name} dreams at {self.height} x {self.width} only: it has learnt that screen's places"
            )
        return dataclasses.replace(self, height=size[0], width=size[1])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """The inverse of `to_json`. Raises ValueError for unknown or missing fields."""
        return _build(cls, json.loads(text))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _build(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from plain JSON values; nested configs by field name."""
    packing = values.get("packing")
    packings = Retrieval if isinstance(packing, dict) and "retrieved" in packing else Tiers
    nested = {"dit": DiTConfig, "vae": VAEConfig, "text": TextConfig, "sampler": SamplerConfig, "camera": CameraConfig,
              "channel": ChannelConfig, "packing": packings, "action": ActionSpec, **NESTED}  # fmt: skip
    unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}: the file was written by another version")
    built = {k: _build(nested[k], v) if isinstance(v, dict) else _tuples(v) for k, v in values.items() if k != "priors"}
    if "priors" in values:
        built["priors"] = tuple(_build(_kind(prior), prior) for prior in values["priors"])
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def _kind(prior: dict[str, Any]) -> type[PriorConfig]:
    if prior.get("kind") not in KINDS:
        raise ValueError(f"unknown kind of prior {prior.get('kind')!r}: known are {', '.join(sorted(KINDS))}")
    return KINDS[prior["kind"]]


_STREET_DIT = DiTConfig(
    dim=160, ffn_dim=480, heads=4, layers=6, patch=(1, 1, 1), latent_channels=32, text_dim=384, freq_dim=64,
    packing=Tiers(recent=((1, 1), (3, 2), (8, 4)), initial=2, old=(2, 2)),
    channel=ChannelConfig(dim=48, heads=3, patch=(4, 4, 4), decay=0.95),
    history_attention="cached", prediction="data", positions="view_sphere",
    mlp_conv=True, activation="relu_squared", screen_embedding=True, pooled_action=True,
    max_age=128,
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "street": ModelConfig(
        name="street", height=64, width=96, fps=8, block_latents=4, start_latents=4,
        dit=_STREET_DIT,
        vae=VAEConfig(kind="patch", spatial_stride=8, temporal_stride=1, latent_channels=32, width=128, depth=2),
        text=TextConfig(kind="minilm", dim=384, event_tokens=32, action_tokens=32),
        sampler=SamplerConfig(steps=2, shift=3.0, start_steps=2, temperature=0.75, start_temperature=0.5),
        priors=(STREET_SCENE,),
    ),
    "yume-5b": ModelConfig(
        name="yume-5b", height=704, width=1280, fps=16, block_latents=8, start_latents=5,
        dit=DiTConfig(), vae=VAEConfig(width=160, depth=2, decoder_width=256),
        text=TextConfig(
            joined=True, prefix="First-person perspective.",
            layers=24, heads=64, head_dim=64, ffn_dim=10240, vocabulary=256384,
        ),
    ),
    "debug": ModelConfig(
        name="debug", height=32, width=48, fps=8, block_latents=2, start_latents=2,
        dit=dataclasses.replace(
            _STREET_DIT, dim=32, ffn_dim=64, heads=2, layers=2, latent_channels=8, text_dim=16, freq_dim=16,
            packing=Tiers(recent=((1, 1), (2, 2)), initial=2, old=(2, 2)),
            channel=ChannelConfig(dim=16, heads=2, patch=(2, 2, 2), decay=0.9),
        ),
        vae=VAEConfig(kind="patch", spatial_stride=8, temporal_stride=2, latent_channels=8, width=8, depth=1),
        text=TextConfig(kind="hashed", dim=16, event_tokens=8, action_tokens=16),
        sampler=SamplerConfig(steps=4, shift=3.0), priors=(DEBUG_SCENE,),
    ),
}  # fmt: skip


def get_preset(name: str) -> ModelConfig:
    """The preset called `name`. Raises ValueError naming the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}: known presets are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]

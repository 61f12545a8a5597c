"""Every number of every model, in frozen dataclasses; the numbers themselves are in presets.py.

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
from world_model.priors.config import KINDS, PriorConfig
from world_model.serialization import from_plain


@dataclass(frozen=True)
class VideoConfig:
    """The video that a model generates, block by block."""

    height: int  # pixels
    width: int  # pixels
    fps: int  # frames a second
    block_latents: int  # latent frames of one step
    start_latents: int  # copies of a start image, in latent frames


@dataclass(frozen=True)
class Tiers:
    """Our history packing: a token count that is constant for ever. A frame of ratio r has a kernel of (1, r*p, r*p)."""

    recent: tuple[tuple[int, int], ...] = ((2, 1), (4, 2), (8, 4))  # (frames, ratio) of latent frames, newest to oldest
    initial: int = 2  # ratio of the first frame
    old: tuple[int, int] = (4, 2)  # (frames, ratio): drawn uniformly from everything older than `recent`

    @property
    def recent_frames(self) -> int:
        return sum(count for count, _ in self.recent)


@dataclass(frozen=True)
class Retrieval:
    """A history of the first frame, the newest ones and old ones that show most of what comes (WorldMem)."""

    recent: int = 2  # newest latent frames
    retrieved: int = 2  # old latent frames


@dataclass(frozen=True)
class ChannelConfig:
    """The channel half of TSCM: all history compressed to few channels, read by ReLU linear attention."""

    dim: int = 96  # channels
    heads: int = 3
    patch: tuple[int, int, int] = (8, 4, 4)  # kernel on history latents: frames, rows, columns
    # factor of the carried sums once per step of that kernel in time: 1.0 is the paper's plain sum, below 1 forgets with a
    # half-life of log(.5)/log(decay) kernels
    decay: float = 1.0


@dataclass(frozen=True)
class HistoryConfig:
    """What of the past the transformer reads, and how."""

    packing: Literal["released", "full"] | Tiers | Retrieval = "released"  # "full": every frame at the finest size
    channel: ChannelConfig | None = field(default_factory=ChannelConfig)  # None: no channel path
    # "cached": keys and values of the history are computed once a block
    attention: Literal["joint", "cached"] = "joint"
    recent_frames: int = 0  # newest history frames whose latents are concatenated to the target's, as DIAMOND does
    max_age: int = 1024  # latent frames; older history counts as this old


@dataclass(frozen=True)
class LayerConfig:
    """What every transformer layer is like besides its width and heads."""

    ffn_dim: int = 14336  # channels between the two MLP layers
    mlp_conv: bool = False  # depthwise 3x3 convolution between the two MLP layers
    activation: Literal["gelu_tanh", "relu_squared"] = "gelu_tanh"  # of the MLP; tanh is slow on a CPU
    eps: float = 1e-6  # of all norms


@dataclass(frozen=True)
class EmbeddingConfig:
    """How place, time and action reach the tokens."""

    freq_dim: int = 256  # numbers of the sinusoid of a timestep
    # RoPE axes: "grid" (running frame, own row, own column; released), "centred" (frame, centre of the area in finest cells), or
    # "view_sphere" (frame, elevation, azimuth)
    positions: Literal["grid", "centred", "view_sphere"] = "grid"
    screen: bool = False  # a learned vector per place on the screen; view-sphere RoPE needs it
    pooled_action: bool = False  # the action (mean caption token, or its encoding) joins the timestep embedding
    pooled_text: bool = False  # so does the mean token of the text, beside cross-attention to its tokens


@dataclass(frozen=True)
class OutputConfig:
    """What the network's output means (flow.py), and where a data prediction starts from."""

    prediction: Literal["velocity", "data"] = "velocity"
    # preconditioning: a data prediction starts from the newest history frame, or from moved frames, not from zero
    residual: bool = False
    # first layers, which alone read the patches of the history, do not see the noisy block and say how earlier frames move
    # (appearance_flow.py); 0: no such thing
    flow_layer: int = 0
    flow_blocks: int = 3  # residual blocks of convolutions that say how they move
    # pixels, an odd number: where moved frames are in view, the layers that see the noise add only what is finer; 1: nothing there;
    # 0: anything
    kept_size: int = 0


@dataclass(frozen=True)
class DenoiserConfig:
    """A network whose tokens are single latent places (denoiser.py). It reads moved frames."""

    dim: int = 192  # width of a token
    heads: int = 6
    layers: int = 8
    ffn_dim: int = 576
    blocks: int = 3  # since a change of text, that it tells apart
    # pixels, odd: of a denoiser's blocks only what is coarser is used; details are those of the moved frames, beyond their borders
    # of the mirror image. Of an expert's that is so in view alone. 0: all is used
    coarse_size: int = 5
    correlated: bool = False  # noise has the spectrum of the data (flow.correlated); else it is white

    @property
    def shape(self) -> tuple[int, ...]:
        """What the shapes of its parameters depend on."""
        return self.dim, self.heads, self.layers, self.ffn_dim, self.blocks, self.correlated


@dataclass(frozen=True)
class ExpertConfig(DenoiserConfig):
    """A second denoiser, for `blocks` after a text has changed, and for worlds begun from a text."""

    steps: int = 2  # of its sampler
    start_steps: int = 12  # of the first block of a text start
    shift: float = 2.0  # of the noise levels of both
    guidance: float = 3.0  # w of u + w (c - u), where u is the prediction without the text


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer. Defaults, here and in its parts, are the released model's choices."""

    dim: int = 3072  # width of a token
    heads: int = 24
    layers: int = 30
    patch: tuple[int, int, int] = (1, 2, 2)  # kernel of a token on latents: frames, rows, columns
    latent_channels: int = 48
    text_dim: int = 4096  # of a text token; 0: no text, and no cross-attention
    layer: LayerConfig = LayerConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    history: HistoryConfig = HistoryConfig()
    output: OutputConfig = OutputConfig()
    # draws what is not in view, in the place of layers after `output.flow_layer`
    denoiser: DenoiserConfig | None = None
    expert: ExpertConfig | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def camera(self) -> bool:
        """Whether earlier pictures are moved as a camera does that turns and walks (homography.py, parallax.py)."""
        return bool(self.output.flow_layer) and self.embedding.positions == "view_sphere"


@dataclass(frozen=True)
class VAEConfig:
    """The video autoencoder."""

    kind: Literal["patch", "wan2.2"] = "wan2.2"  # names its class in `vae.VAES`
    spatial_stride: int = 16  # pixels of a latent place, each way
    temporal_stride: int = 4  # frames of a latent frame
    latent_channels: int = 48
    width: int = 0  # channels of the convolutions ("patch": 0 for none); "wan2.2": at the encoder's finest scale
    depth: int = 0  # residual blocks at each scale
    decoder_width: int = 0  # channels at the decoder's finest scale ("wan2.2" only)


@dataclass(frozen=True)
class T5Config:
    """Sizes of a UMT5 text encoder that comes with a checkpoint; its width is `TextConfig.dim`."""

    layers: int
    heads: int  # of each layer
    head_dim: int  # channels of a head
    ffn_dim: int  # channels between the two MLP layers
    vocabulary: int  # tokens


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder. Events and actions are encoded apart and padded with zeros to their lengths."""

    kind: Literal["minilm", "umt5", "hashed", "none"] = "umt5"
    dim: int = 4096  # of a token
    event_tokens: int = 448
    action_tokens: int = 64
    # instead, `prefix`, action and event are one caption and fill both lengths together, as in the released weights' public demo
    joined: bool = False
    prefix: str = ""  # before every action caption
    t5: T5Config | None = None  # of kind "umt5"


@dataclass(frozen=True)
class SamplerConfig:
    """Few-step Euler sampler on the shifted rectified-flow schedule."""

    steps: int = 4
    shift: float = 7.0
    start_steps: int = 4  # of the first block of a text start
    # factor of the initial noise: 1 samples what the model has learnt, lower keeps to what it is sure of, at the price of detail
    # (0 is the same dream for every seed)
    temperature: float = 1.0
    start_temperature: float = 1.0  # of the first block of a text start


@dataclass(frozen=True)
class ModelConfig:
    """One world model. Derived sizes are properties; nothing else holds them."""

    name: str
    video: VideoConfig
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    sampler: SamplerConfig = SamplerConfig()
    camera: CameraConfig = CameraConfig()
    action: ActionSpec = ActionSpec()
    priors: tuple[PriorConfig, ...] = ()  # none: the generator alone

    @property
    def height(self) -> int:
        return self.video.height

    @property
    def width(self) -> int:
        return self.video.width

    @property
    def fps(self) -> int:
        return self.video.fps

    @property
    def block_latents(self) -> int:
        return self.video.block_latents

    @property
    def start_latents(self) -> int:
        return self.video.start_latents

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

        output, history = self.dit.output, self.dit.history
        if output.flow_layer and not (
            output.residual
            and history.recent_frames
            and history.attention == "cached"
            and output.flow_layer < self.dit.layers + bool(self.dit.denoiser)
        ):
            raise ValueError(
                f"{self.name}: appearance flow is where a residual prediction starts from, after some of the layers; it needs "
                f"residual, recent_frames, cached history and flow_layer below {self.dit.layers}, got "
                f"flow_layer={output.flow_layer}"
            )
        if output.kept_size and not (output.flow_layer and output.kept_size % 2):
            raise ValueError(
                f"{self.name}: what is coarse is kept of moved frames; it needs flow_layer and an odd kept_size, got "
                f"flow_layer={output.flow_layer} and kept_size={output.kept_size}"
            )
        if self.dit.camera and not self.dit.embedding.pooled_action:
            raise ValueError(
                f"{self.name}: the action says how far a camera comes that moves pictures; flow_layer with "
                f"positions='view_sphere' needs pooled_action"
            )
        if self.dit.denoiser and not (output.flow_layer == self.dit.layers and self.dit.text_dim):
            raise ValueError(
                f"{self.name}: a denoiser reads moved frames and a text, and no layers follow those that move frames; it needs "
                f"flow_layer={self.dit.layers} and text_dim, got flow_layer={output.flow_layer} and text_dim={self.dit.text_dim}"
            )
        if self.dit.expert and not (output.flow_layer and self.dit.text_dim):
            raise ValueError(
                f"{self.name}: an expert for texts reads moved frames and a text; it needs flow_layer and text_dim, got "
                f"flow_layer={output.flow_layer} and text_dim={self.dit.text_dim}"
            )
        for own in (self.dit.denoiser, self.dit.expert):
            if own and own.coarse_size and not own.coarse_size % 2:
                raise ValueError(f"{self.name}: a denoiser's coarse_size must be 0 or odd, got {own.coarse_size}")
        if output.residual and output.prediction != "data":
            raise ValueError(
                f"{self.name}: residual preconditioning is of a data prediction; it needs prediction='data'"
            )
        if self.priors and output.prediction != "data":
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
        if tuple(size) != (self.height, self.width) and self.dit.embedding.screen:
            raise ValueError(
                f"{self.name} dreams at {self.height} x {self.width} only: it has learnt that screen's places"
            )
        return dataclasses.replace(self, video=dataclasses.replace(self.video, height=size[0], width=size[1]))

    def with_history(self, **changes: Any) -> ModelConfig:
        """The same model with another memory: `changes` are fields of its `HistoryConfig`."""
        history = dataclasses.replace(self.dit.history, **changes)
        return dataclasses.replace(self, dit=dataclasses.replace(self.dit, history=history))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """The inverse of `to_json`. Raises ValueError for unknown or missing fields, or an unknown kind of prior."""
        values = json.loads(text)
        for kind in [prior.get("kind") for prior in values.get("priors", ())]:
            if kind not in KINDS:
                raise ValueError(f"unknown kind of prior {kind!r}: known are {', '.join(sorted(KINDS))}")
        return from_plain(cls, values)

"""Where the parts of a model live and in what precision: the options of one `WorldModel.load` call, and the memory they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from world_model.checks import short
from world_model.config import ModelConfig
from world_model.dit import DiT
from world_model.vae import Autoencoder, DecoderCache, VideoVAE, build_vae

Text = Literal["cpu", "device", "drop"]
Captions = Literal["joined", "apart"]
Quantized = Literal["int8", "fp8"]
Offload = Literal["none", "vae", "model"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_options(options: Mapping[str, Any]) -> LoadOptions:
    """Options by name. Raises ValueError for an unknown name, else what `LoadOptions` raises."""
    known = [field.name for field in fields(LoadOptions)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"unknown option of loading {short(unknown[0])}: known are {', '.join(known)}")
    return LoadOptions(**options)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded. Raises ValueError for an unknown value or options that exclude each other.

    device: "auto" (cuda if there is one), or torch's names. dtype, vae_dtype: of the network's and the autoencoder's weights,
    "float32", "bfloat16", or "auto": bfloat16 on cuda, float32 elsewhere.
    text: the encoder's place, "cpu", "device" or "drop" (used, then dropped; read again from disk for every new text).
    captions: "joined" or "apart" (`TextConfig.joined`); None is the model's own way.
    quantize: the transformer blocks' weights in "int8" or "fp8" (torchao, weight only), or None.
    compile: compile the transformer blocks (True, or the name of a torch.compile backend).
    offload: "vae": the autoencoder is on the device only while it works; "model": the transformer leaves the device meanwhile.
    The text option matters to encoders that come with a checkpoint only.
    """

    device: str = "auto"
    dtype: str = "auto"
    vae_dtype: str = "auto"
    text: Text = "cpu"
    captions: Captions | None = None
    quantize: Quantized | None = None
    compile: bool | str = False
    offload: Offload = "none"

    def __post_init__(self) -> None:
        known = {
            "text": get_args(Text),
            "captions": (None, *get_args(Captions)),
            "quantize": (None, *get_args(Quantized)),
            "offload": get_args(Offload),
            "dtype": ("auto", *DTYPES),
            "vae_dtype": ("auto", *DTYPES),
        }
        for name, values in known.items():
            value = self.__dict__[name]
            if not any(value is one or (isinstance(value, str) and value == one) for one in values):
                raise ValueError(f"unknown {name} {short(value)}: use {', '.join(map(repr, values))}")
        if not isinstance(self.compile, bool | str):
            raise TypeError(f"compile must be True, False or the name of a backend; got {short(self.compile)}")
        if self.text == "drop" and self.captions == "joined":
            raise ValueError(
                "joined captions need the text encoder at every new pair: with text='drop' use captions='apart'"
            )
        if self.quantize:
            _torchao()

    @property
    def torch_device(self) -> torch.device:
        """The torch device. Raises TypeError for what is no name, ValueError for an unknown or missing one."""
        wanted = "use 'auto', 'cpu', 'cuda' or one of several, such as 'cuda:1'"
        if not isinstance(self.device, str | torch.device):
            raise TypeError(f"device must be a name; got {short(self.device)}: {wanted}")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"unknown device {self.device!r}: {wanted}") from error
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"models do not run on device {self.device!r}: {wanted}")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {self.device!r} is not available here: use 'auto' or 'cpu'")
        return device

    def number(self, name: str) -> torch.dtype:
        """The torch precision that `name` ("auto" or a name) means on this device."""
        if name == "auto":
            return torch.bfloat16 if self.torch_device.type == "cuda" else torch.float32
        return DTYPES[name]

    @property
    def staging(self) -> torch.device:
        """Where the transformer's weights are read to: the CPU if they are made smaller before they move."""
        return torch.device("cpu") if self.quantize else self.torch_device


class VisitingVAE:
    """A VideoVAE whose weights and decoder state rest in main memory and come to the device for each call.

    `resting`: a network that leaves the device meanwhile.
    """

    def __init__(self, vae: Autoencoder, device: torch.device, resting: nn.Module | None = None) -> None:
        self.vae, self.device, self.resting = vae.to("cpu"), device, resting
        self.config = vae.config

    @contextmanager
    def _visit(self) -> Iterator[VideoVAE]:
        if self.resting is not None:
            self.resting.to("cpu")
        try:
            yield self.vae.to(self.device)
        finally:
            self.vae.to("cpu")
            if self.resting is not None:
                self.resting.to(self.device)

    def encode(self, video: Tensor) -> Tensor:
        with self._visit() as vae:
            return vae.encode(video.to(self.device))

    def encode_stream(self, videos: Iterable[Tensor]) -> Iterator[Tensor]:
        with self._visit() as vae:
            yield from vae.encode_stream(video.to(self.device) for video in videos)

    def decode(self, latents: Tensor, cache: DecoderCache | None = None) -> tuple[Tensor, DecoderCache]:
        with self._visit() as vae:
            here = tuple(part.to(self.device) for part in cache) if cache else None
            video, cache = vae.decode(latents.to(self.device), here)
            return video, tuple(part.to("cpu") for part in cache)


def place(dit: DiT, vae: Autoencoder, options: LoadOptions) -> tuple[DiT, VideoVAE]:
    """Both networks where the options want them, ready to dream; their precisions are as loaded, but for `quantize`."""
    dit.eval().requires_grad_(False)
    vae.eval().requires_grad_(False)
    if options.quantize:
        _quantize(dit, options.quantize, options.torch_device)
    dit.to(options.torch_device)
    if options.compile:
        for block in dit.blocks:
            block.compile(backend="inductor" if options.compile is True else options.compile, dynamic=True)
    if options.offload == "none":
        return dit, vae.to(options.torch_device)
    return dit, VisitingVAE(vae, options.torch_device, dit if options.offload == "model" else None)


def _torchao():
    try:
        from torchao import quantization
    except ImportError as error:
        raise ImportError("quantize needs the package torchao: pip install torchao") from error
    return quantization


def _quantize(dit: DiT, kind: Quantized, device: torch.device) -> None:
    """Weight-only: the linears of the blocks hold one byte a weight and a scale a row; each moves to the device when done."""
    tools = _torchao()
    config = tools.Int8WeightOnlyConfig() if kind == "int8" else tools.Float8WeightOnlyConfig()
    tools.quantize_(dit.blocks, config, filter_fn=lambda module, _: type(module) is nn.Linear, device=device)


def memory(config: ModelConfig, options: LoadOptions) -> dict[str, tuple[str, int]]:
    """Bytes that stay taken between steps, part by part: {part: (where, bytes)}; computed on the meta device.

    Not counted: what a step needs while it runs, and history latents.
    """
    device, number, vae_number = (
        options.torch_device.type,
        options.number(options.dtype),
        options.number(options.vae_dtype),
    )
    with torch.device("meta"):
        dit, vae = DiT(config), build_vae(config.vae).to("meta", vae_number)
        _, cache = vae.decode(torch.empty(1, config.vae.latent_channels, 2, *config.latent_size))
    total = sum(p.numel() for p in dit.parameters()) * number.itemsize
    if options.quantize:
        linears = [m.weight for m in dit.blocks.modules() if type(m) is nn.Linear]
        total -= sum(w.numel() * (number.itemsize - 1) - w.shape[0] * torch.float32.itemsize for w in linears)
    dim, t5, encoder = config.text.dim, config.text.t5, 0
    if t5 is not None:
        layer = 4 * dim * t5.heads * t5.head_dim + 3 * dim * t5.ffn_dim + 2 * dim + 32 * t5.heads
        encoder = t5.vocabulary * dim + t5.layers * layer + dim
    resting = "cpu" if options.offload != "none" else device
    return {
        "transformer": (device, total),
        "autoencoder": (resting, sum(p.numel() for p in vae.parameters()) * vae_number.itemsize),
        "stream of one world": (resting, sum(c.numel() for c in cache) * vae_number.itemsize),
        "text encoder": (device if options.text == "device" else options.text, encoder * number.itemsize),
    }

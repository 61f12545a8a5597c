"""Encoded texts on disk, so that no training process has to hold a large text encoder: `python -m train.data MODEL encode-text`.

Legend: n real tokens of a text, dim features of one.

    <data>/texts/texts_00000.safetensors     tensors [n, dim] float16, without padding, by `key`

Training reads them where they are and encodes on the fly what is not there, if the weights that it begins from have an encoder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from train.data import sekai
from train.data.clips import holds_clips
from train.data.labels import ClipError
from train.data.shards import Shard, find_shards
from train.engine.sharding import own_device
from world_model.actions import Action
from world_model.config import ModelConfig
from world_model.released.files import holds_text_encoder, open_text_encoder
from world_model.released.placement import LoadOptions
from world_model.released.umt5 import UMT5Encoder
from world_model.text import Conditioning, JoinedConditioning, TextEncoder, build_conditioning

FOLDER = "texts"
PER_FILE = 1024  # texts
Request = tuple[str, int]  # a text, and how many tokens are wanted of it


def key(text: str, length: int) -> str:
    """The name of an encoded text in the cache."""
    return f"{length:04d}_{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


class EncodedTexts:
    """A `text.TextEncoder` that reads what was encoded before, and asks `encoder`, made when first needed, for the rest."""

    def __init__(self, folder: Path, config: ModelConfig, encoder: Callable[[], TextEncoder] | None = None) -> None:
        self.folder, self.config, self._make = folder, config, encoder
        self._encoder: TextEncoder | None = None
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("texts_*.safetensors"))]
        self._places = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, request: Request) -> bool:
        return key(*request) in self._places

    def encode(self, text: str, length: int) -> Tensor:
        """Token features [length, dim] float32, zero-padded; "" is all zeros. Raises KeyError for a text that is not in the cache
        where there is no encoder, ValueError for a cache of another encoder."""
        if not text:
            return torch.zeros(length, self.config.text.dim)
        name = key(text, length)
        if name in self._places:
            tokens = self._places[name].get_tensor(name).float()
            if tokens.shape[1] != self.config.text.dim:
                raise ValueError(
                    f"{self.folder} holds texts of {tokens.shape[1]} features, {self.config.name!r} reads "
                    f"{self.config.text.dim}: delete it and run encode-text again"
                )
            return F.pad(tokens, (0, 0, 0, length - len(tokens)))
        if self._make is None:
            raise KeyError(
                f"the text {text!r} ({length} tokens) is not in {self.folder}: run `python -m train.data MODEL encode-text` with "
                "the same --captions, or give --initial a folder with the text encoder"
            )
        self._encoder = self._encoder or self._make()
        return self._encoder.encode(text, length)


def open_conditioning(config: ModelConfig, data: Path, weights: Path | None) -> Conditioning:
    """How texts reach the model in training on `data`; `weights`: what training begins from, where its text encoder may lie."""
    if config.text.kind != "umt5":
        return build_conditioning(config)
    make = None
    if weights is not None and holds_text_encoder(weights):
        options = LoadOptions(device=str(own_device()))

        def make() -> UMT5Encoder:
            return open_text_encoder(weights, config.text, options)

    return build_conditioning(config, None, EncodedTexts(data / FOLDER, config, make))


def encode_texts(config: ModelConfig, data: Path, weights: Path, device: str = "auto") -> tuple[int, int]:
    """Encodes every text of `data` as `config` wants it told, with the encoder in `weights`; what is there already is kept.

    Returns how many texts were encoded and how many there are. Raises ValueError for a model whose encoder needs no cache, and what
    `open_text_encoder` raises.
    """
    if config.text.kind != "umt5":
        raise ValueError(
            f"the text encoder {config.text.kind!r} of {config.name!r} is small: texts are encoded as they come"
        )
    encoder = open_text_encoder(weights, config.text, LoadOptions(device=device, text="device"))
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    wanted, held = sorted(set(_requests(config, data))), EncodedTexts(folder, config)
    missing = [request for request in wanted if request not in held]
    number = len(list(folder.glob("texts_*.safetensors")))
    for first in tqdm(range(0, len(missing), PER_FILE), desc="encode-text", unit="file"):
        _write(folder / f"texts_{number:05d}.safetensors", missing[first : first + PER_FILE], encoder)
        number += 1
    return len(missing), len(wanted)


def _write(path: Path, requests: list[Request], encoder: UMT5Encoder) -> None:
    """One file of the cache, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for length in sorted({length for _, length in requests}):
        texts = [text for text, of in requests if of == length]
        for text, tokens in zip(texts, encoder.encode_all(texts, length)):
            real = int((tokens != 0).any(dim=1).sum())
            tensors[key(text, length)] = tokens[:real].half().contiguous()
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    os.replace(unfinished, path)


def _requests(config: ModelConfig, data: Path) -> Iterator[Request]:
    """All that training on `data` may ask to encode."""
    nothing = torch.zeros(0, 0, config.text.dim)
    plan = JoinedConditioning(config.text) if config.text.joined else Conditioning(config.text, nothing)
    yield from plan.action_captions()
    for actions, texts in _told(data):
        pairs = (plan.event_caption(action, text) for action in actions for text in (None, *texts))
        yield from (request for request in pairs if request[0])


def _told(data: Path) -> Iterable[tuple[set[Action], set[str | None]]]:
    """Actions and texts of each clip or walk; clips that cannot be used are passed over."""
    if not holds_clips(data):
        for path in find_shards(data):
            shard = Shard(path)
            for actions, info in zip(shard.action.tolist(), shard.walks, strict=True):
                yield {Action.from_index(index) for index in actions}, {info.caption, *(t for _, t, _ in info.event)}
        return
    for video in sekai.find_clips(data):
        try:
            clip = sekai.read_clip(video)
        except ClipError as problem:
            tqdm.write(f"not used: {problem}")
            continue
        held = [action for _, action in clip.actions]
        # a block takes move and look from what is held most in it, each by itself
        pairs = {Action(a.move, b.look) for a in held for b in held}
        yield pairs, {clip.caption, *(text for _, text in clip.events)}

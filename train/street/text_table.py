"""Encoded texts in a file, for machines without the text encoder: action captions, phrasings of events, captions of episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from train.generator.shapes import MINILM
from train.recordings import open_episodes
from train.street.episodes import EpisodeTask, every_phrase, first_caption
from train.street.towns import TOWN_BLOCKS, TRAINING_TOWNS, VALIDATION_TOWNS
from world_model.presets import get_preset
from world_model.text import Conditioning, build_text_encoder


class TextTable:
    """Encoded texts from a file, for machines without the text encoder. Raises ValueError for a text that is not in it."""

    def __init__(self, path: Path) -> None:
        held = load_file(path)
        texts = json.loads(bytes(held["texts"].tolist()).decode())
        self._rows, self._tokens = {text: i for i, text in enumerate(texts)}, held["tokens"]
        self.actions = held["actions"].float()

    def encode(self, text: str, length: int) -> Tensor:
        if text and text not in self._rows:
            raise ValueError(
                f"{text!r} is not in the table of texts: write it anew with `python -m train.street_world texts`"
            )
        tokens = self._tokens[self._rows[text]].float() if text else torch.zeros_like(self._tokens[0]).float()
        if len(tokens) != length:
            raise ValueError(
                f"the table of texts holds {len(tokens)} tokens each, the model wants {length}: write it anew"
            )
        return tokens


def write_texts(
    out: Path,
    towns: int,
    shown: int,
    blocks: int,
    seed: int = 0,
    length: int = MINILM.event_tokens,
    recordings: Sequence[Path] = (),
) -> int:
    """Encodes the action captions, all phrasings of events, and the captions of two episodes, of so many
    `blocks`, in each of the first `towns` training towns, and of one in each of the first `shown` validation towns; also those of
    all episodes of `recordings`, which another machine renders again."""
    config = get_preset("street")
    encoder = build_text_encoder(config.text)
    trained = [(town, number) for town in TRAINING_TOWNS[:towns] for number in range(2)]
    held_out = [(town, 0) for town in VALIDATION_TOWNS[:shown]]
    tasks = [EpisodeTask(config, seed, town, number, blocks, TOWN_BLOCKS) for town, number in trained + held_out]
    others = {caption for folder in recordings for caption in open_episodes(folder).captions if caption}
    texts = sorted({*every_phrase(), *others, *(first_caption(task) for task in tqdm(tasks, desc="captions"))})
    tokens = torch.stack([encoder.encode(text, length).half() for text in tqdm(texts, desc="texts")])
    words = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)
    actions = Conditioning(config.text).actions.half()
    save_file({"tokens": tokens, "texts": words, "actions": actions}, out)
    return len(texts)

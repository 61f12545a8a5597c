"""What a model was trained on: the text that is nearest to one it is told, and how far a picture is from its pictures.

A folder of weights may hold `known.safetensors` and `known.json` (train.generator.known). A model answers every text and every
picture with something; these say what it made of them.

Shapes: N texts of training, E numbers of a text, B pictures, C latent channels, h x w latent size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from world_model.uncertainty import Familiarity
from world_model.weights import check_file, is_listed, list_files, load_tensors

TENSORS, CONFIG = "known.safetensors", "known.json"


@dataclass(frozen=True)
class NearestText:
    """The text of training that is nearest to one that was told, the cosine of both, -1..1, and whether that counts as the same."""

    text: str
    similarity: float
    understood: bool


class Known(nn.Module):
    """Texts of training, encoded, and a Gaussian over its pictures. A text is understood from the cosine `least` on."""

    tokens: Tensor

    def __init__(self, texts: Sequence[str], tokens: Tensor, channels: int, least: float) -> None:
        """tokens [N, E] of `texts`. Raises ValueError where these are not equally many."""
        super().__init__()
        if len(texts) != len(tokens):
            raise ValueError(f"every known text is encoded once: got {len(texts)} texts and {len(tokens)} rows")
        self.texts, self.channels, self.least = tuple(texts), channels, least
        self.register_buffer("tokens", F.normalize(tokens.float(), dim=-1))
        self.pictures = Familiarity(2 * channels)

    def nearest(self, token: Tensor) -> NearestText | None:
        """The nearest text to a mean token [E]; None for a model that was trained without texts."""
        if not self.texts:
            return None
        similarity, row = (self.tokens @ F.normalize(token.to(self.tokens), dim=-1)).max(dim=0)
        return NearestText(self.texts[int(row)], float(similarity), float(similarity) >= self.least)

    def distance(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B] float32: how far pictures are from those of training; about 1 is usual."""
        return self.pictures(features(latents))


def features(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 2 * C] float32: means and deviations of the channels over a picture."""
    flat = latents.float().flatten(2)
    return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)


def usual_similarity(tokens: Tensor, share: float = 0.05) -> float:
    """The cosine that all but a `share` of texts [N, E] exceed with the nearest other text; 1 for fewer than two."""
    if len(tokens) < 2:
        return 1.0
    unit = F.normalize(tokens.float(), dim=-1)
    alike = (unit @ unit.T).fill_diagonal_(-1).amax(dim=1)
    return float(alike.quantile(share))


def save_known(folder: Path, known: Known) -> None:
    """Writes the two files into a weights folder, and lists them in its manifest."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in known.state_dict().items()}
    save_file({**tensors, "tokens": tensors["tokens"].half()}, folder / TENSORS)
    values = {"channels": known.channels, "least": known.least, "texts": known.texts}
    (folder / CONFIG).write_text(json.dumps(values, indent=0) + "\n")
    list_files(folder)


def load_known(folder: Path, device: torch.device | str = "cpu") -> Known | None:
    """What the two files of a weights folder say; None for one that has none.

    Raises FileNotFoundError where one of them is missing, ValueError where one is damaged or they do not fit together.
    """
    if not any(is_listed(folder, name) for name in (TENSORS, CONFIG)):
        return None
    path = check_file(folder, CONFIG)
    try:
        values, tensors = json.loads(path.read_text()), load_tensors(folder, TENSORS)
        known = Known(values["texts"], tensors["tokens"], int(values["channels"]), float(values["least"]))
        known.load_state_dict(tensors, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit {TENSORS}: {error}; make both with train.generator.known") from error
    return known.eval().requires_grad_(False).to(device)

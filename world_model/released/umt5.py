"""UMT5, the text encoder of Wan2.2, through transformers: last hidden states of the real tokens, zeros behind them.

Texts are cleaned as Wan cleans them (ftfy, HTML entities, white space). New texts are rare, so the encoder may stay on the CPU,
or be dropped after each use and read again from disk (`keep=False`).

Shapes: n texts, L tokens.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from world_model.checkpoint import Checkpoint, Shape
from world_model.config import T5Config, TextConfig

BATCH = 16  # texts encoded at once

# names in models_t5_umt5-xxl-enc-bf16.pth -> names in transformers, which they leave alone
_LAYER = r"encoder.block.\1.layer"
_RENAMING = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", rf"{_LAYER}.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", rf"{_LAYER}.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", rf"{_LAYER}.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", rf"{_LAYER}.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", rf"{_LAYER}.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", rf"{_LAYER}.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", rf"{_LAYER}.1.DenseReluDense.wo."),
]


def transformers_name(name: str) -> str | None:
    """The transformers name of a tensor of the original file; None for the second name of the shared embedding."""
    for pattern, replacement in _RENAMING:
        name = re.sub(pattern, replacement, name)
    return None if name == "encoder.embed_tokens.weight" else name


def sizes(shapes: dict[str, Shape], event_tokens: int, action_tokens: int) -> TextConfig:
    """The sizes of an encoder from its tensors' shapes. Raises ValueError where the telling ones are missing."""
    first = "encoder.block.0.layer"
    try:
        vocabulary, dim = shapes["shared.weight"]
        heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"][1]
        attention = shapes[f"{first}.0.SelfAttention.q.weight"][0]
        ffn_dim = shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"no UMT5 encoder: the tensor {error} is missing or misshapen") from error
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block."))
    return TextConfig(
        "umt5",
        dim,
        event_tokens,
        action_tokens,
        t5=T5Config(layers, heads, attention // heads, ffn_dim, vocabulary),
    )


def build_umt5(config: TextConfig) -> nn.Module:
    """transformers' encoder of these sizes on the meta device."""
    from transformers import UMT5Config, UMT5EncoderModel  # heavy imports stay out of programs that read no text

    t5 = config.t5
    assert t5 is not None
    with torch.device("meta"):
        return UMT5EncoderModel(
            UMT5Config(
                vocab_size=t5.vocabulary,
                d_model=config.dim,
                d_kv=t5.head_dim,
                d_ff=t5.ffn_dim,
                num_layers=t5.layers,
                num_heads=t5.heads,
                relative_attention_num_buckets=32,
                relative_attention_max_distance=128,
                layer_norm_epsilon=1e-6,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        ).eval()


def clean(text: str) -> str:
    """Text as Wan's tokenizer gets it."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


class UMT5Encoder:
    """A frozen UMT5; see `text.TextEncoder`. `checkpoint` has transformers' names (`transformers_name`)."""

    def __init__(
        self,
        config: TextConfig,
        checkpoint: Checkpoint,
        tokenizer: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        keep: bool = True,
    ) -> None:
        from transformers import AutoTokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.config, self.checkpoint, self.device, self.dtype, self.keep = config, checkpoint, device, dtype, keep
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self._model: nn.Module | None = None

    def encode(self, text: str, length: int) -> Tensor:
        """Token features [length, dim] float32 on the CPU: cut or zero-padded; "" is all zeros."""
        return self.encode_all([text], length)[0]

    def encode_all(self, texts: Sequence[str], length: int) -> Tensor:
        """[n, length, dim] float32 on the CPU; one reading of the weights for all of them if they are not kept."""
        batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        encoded = torch.cat([self._encode_batch([clean(text) for text in batch], length) for batch in batches])
        if not self.keep:
            self._model = None
        return encoded

    @torch.inference_mode()
    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [n, L] int64 -> last hidden states [n, L, dim] float32 on the CPU; zeros where mask is 0."""
        if self._model is None:
            self._model = load_umt5(self.config, self.checkpoint, self.dtype, self.device)
        hidden = self._model(ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return hidden.float().cpu() * mask[..., None].cpu()

    def _encode_batch(self, texts: list[str], length: int) -> Tensor:
        encoded = torch.zeros(len(texts), length, self.config.dim)
        spoken = [i for i, text in enumerate(texts) if text]
        if spoken:
            inputs = self._tokenizer(
                [texts[i] for i in spoken], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            encoded[spoken, : inputs["input_ids"].shape[1]] = self.features(
                inputs["input_ids"], inputs["attention_mask"]
            )
        return encoded


def load_umt5(config: TextConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """The network with its weights, strictly (the caller has compared the shapes)."""
    model = build_umt5(config)
    state = checkpoint.read(dtype, device)
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)

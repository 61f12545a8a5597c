"""A shrunken Yume-5B with random weights, written as the real one is published: names, shards, configuration files, tokenizer."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from world_model.actions import ALL_ACTIONS
from world_model.config import ModelConfig, T5Config
from world_model.dit import DiT
from world_model.presets import PRESETS
from world_model.released.umt5 import build_umt5
from world_model.released.wan_vae import diffusers_config
from world_model.vae import build_vae

FULL = PRESETS["yume-5b"]
T5 = T5Config(layers=2, heads=4, head_dim=6, ffn_dim=40, vocabulary=90)
SHRUNKEN: ModelConfig = replace(
    FULL,
    name="shrunken",
    dit=replace(
        FULL.dit,
        dim=48,
        heads=2,
        layers=2,
        text_dim=32,
        layer=replace(FULL.dit.layer, ffn_dim=96),
        embedding=replace(FULL.dit.embedding, freq_dim=32),
    ),
    vae=replace(FULL.vae, width=8, decoder_width=10),
    text=replace(FULL.text, dim=32, t5=T5),
)
DIT_CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.33.0",
    "dim": 48,
    "eps": 1e-6,
    "ffn_dim": 96,
    "freq_dim": 32,
    "in_dim": 48,
    "model_type": "ti2v",
    "num_heads": 2,
    "num_layers": 2,
    "out_dim": 48,
    "text_len": 512,
}


def stirred(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict in which no tensor is left at zero or one; norms stay near one, weights keep their scale."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=random)
        fan_in = value.shape[1:].numel() if value.dim() > 1 else 1
        is_norm = "norm" in name and name.endswith(("weight", "gamma"))
        state[name] = 1 + 0.1 * noise if is_norm else noise / max(fan_in, 1) ** 0.5 * (1 if value.dim() > 1 else 0.1)
    return state


def tensors() -> dict[str, dict[str, Tensor]]:
    """State dicts of the three networks, in the names of the original transformer, diffusers and transformers."""
    with torch.device("meta"):
        dit, vae = DiT(SHRUNKEN), build_vae(SHRUNKEN.vae)
    text = stirred(build_umt5(SHRUNKEN.text), 3)
    text.pop("encoder.embed_tokens.weight")
    return {
        "dit": {name: value for name, value in stirred(dit, 1).items() if "channel" not in name},
        "vae": stirred(vae.model, 2),
        "text": text,
    }


def write_release(folder: Path, layout: str, shards: int = 1) -> Path:
    """layout "original": the published folder; "diffusers": autoencoder, text encoder and tokenizer as diffusers has them."""
    state = tensors()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(DIT_CONFIG))
    write_shards(folder, "diffusion_pytorch_model", state["dit"], shards)
    if layout == "original":
        torch.save({original_vae_name(name): value for name, value in state["vae"].items()}, folder / "Wan2.2_VAE.pth")
        text = {original_text_name(name): value.bfloat16() for name, value in state["text"].items()}
        torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
        write_tokenizer(folder / "google" / "umt5-xxl")
        return folder
    for name, key, stem in (("vae", "vae", "diffusion_pytorch_model"), ("text_encoder", "text", "model")):
        (folder / name).mkdir()
        values = {n: v.bfloat16() if key == "text" else v for n, v in state[key].items()}
        write_shards(folder / name, stem, values, 2 if key == "text" else 1)
    (folder / "vae" / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKLWan", **diffusers_config(SHRUNKEN.vae)})
    )
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps({"architectures": ["UMT5EncoderModel"], "d_model": 32})
    )
    write_tokenizer(folder / "tokenizer")
    return folder


def write_shards(folder: Path, stem: str, state: dict[str, Tensor], shards: int) -> None:
    names = sorted(state)
    if shards == 1:
        save_file({name: state[name].contiguous() for name in names}, folder / f"{stem}.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name].contiguous() for name in names[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(v.nbytes for v in state.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    _tokenizer().save_pretrained(folder)


@lru_cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer of the captions' words, with UMT5's special tokens (its training is not quite deterministic)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=T5.vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([action.caption for action in ALL_ACTIONS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def original_vae_name(name: str) -> str:
    """Names in Wan2.2_VAE.pth, written down independently of the product's renaming."""
    parts = name.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return f"conv{1 if parts[0] == 'quant_conv' else 2}.{parts[1]}"
    side, layer, *rest = parts
    if layer in ("conv_in", "norm_out", "conv_out"):
        return ".".join([side, {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[layer], *rest])
    inner = {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }
    if layer == "mid_block":
        kind, number, *rest = rest
        if kind == "attentions":
            return ".".join([side, "middle.1", *rest])
        return ".".join([side, f"middle.{2 * int(number)}", inner[rest[0]], *rest[1:]])
    way, last = ("downsamples", 2) if layer == "down_blocks" else ("upsamples", 3)
    stage, kind, *rest = rest
    if kind == "resnets":
        return ".".join([side, way, stage, way, rest[0], inner[rest[1]], *rest[2:]])
    return ".".join([side, way, stage, way, str(last), *rest])


def original_text_name(name: str) -> str:
    """Names in models_t5_umt5-xxl-enc-bf16.pth."""
    inner = {
        "0.layer_norm": "norm1",
        "1.layer_norm": "norm2",
        "0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "1.DenseReluDense.wi_0": "ffn.gate.0",
        "1.DenseReluDense.wi_1": "ffn.fc1",
        "1.DenseReluDense.wo": "ffn.fc2",
        **{f"0.SelfAttention.{x}": f"attn.{x}" for x in "qkvo"},
    }
    outer = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    if name in outer:
        return outer[name]
    block, layer = re.fullmatch(r"encoder\.block\.(\d+)\.layer\.(.*)\.weight", name).groups()
    return f"blocks.{block}.{inner[layer]}.weight"

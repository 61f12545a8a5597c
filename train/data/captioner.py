"""An example of a relabelling hook: a vision-language model of transformers says what happens in a clip.

    export YUME_CAPTIONER=<folder or hub name>
    python -m train.data MODEL mix --real clips/=1 --captioner train.data.captioner:describe --out mixture/

Any model that `AutoModelForImageTextToText` knows and whose processor has a chat template will do.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

PROMPT = "These are pictures of a first-person video, in order. Say in one sentence what happens in it, not how the place looks."
LENGTH = 64  # tokens of an answer, at most


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoProcessor.from_pretrained(name), AutoModelForImageTextToText.from_pretrained(name).to(device).eval()


@torch.inference_mode()
def describe(pictures: np.ndarray, kind: str) -> str:
    """One sentence on pictures uint8 [n, H, W, 3]. Raises ValueError where $YUME_CAPTIONER names no model."""
    name = os.environ.get("YUME_CAPTIONER")
    if not name:
        raise ValueError("set YUME_CAPTIONER to a vision-language model: a folder, or a name on the Hugging Face hub")
    processor, model = _load(name)
    shown = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": PROMPT}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    answer = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    return processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

"""The five VBench figures of Yume-Bench, computed by the package `vbench` in an environment of its own.

vbench 0.1.5 pins numpy below 2 and transformers 4.33.2, which this project does not run with. Its networks' weights are files in a
folder (`FILES`); nothing is ever fetched. What cannot be computed says why (`Unavailable`).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

WORKER = Path(__file__).with_name("vbench_worker.py")
DINO = "dino_model/dino_vitbase16_pretrain.pth"
# what each figure reads, by the names that vbench gives them in its cache
FILES = {
    "subject_consistency": ("dino_model/facebookresearch_dino_main/hubconf.py", DINO),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
}
HOW = "make one: python3.11 -m venv ENV && ENV/bin/pip install vbench; then --vbench-python ENV/bin/python"


class Unavailable(Exception):
    """A figure that cannot be computed here; the message says why."""


def default_weights() -> Path:
    """Where vbench itself looks for weights."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def measure(videos: Path, dimension: str, python: Path | None, weights: Path, device: str = "cpu") -> dict[str, float]:
    """A figure of `FILES` for each video of a folder, by file name.

    python: of the environment with `vbench`. Raises Unavailable without it, without weights, or where vbench fails.
    """
    if python is None:
        raise Unavailable(f"no Python with the package vbench was given; {HOW}")
    if not python.exists():
        raise Unavailable(f"no such file: {python}; {HOW}")
    missing = [name for name in FILES[dimension] if not (weights / name).is_file()]
    if missing:
        raise Unavailable(f"weights missing in {weights}: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        hub = out / "torch" / "hub" / "checkpoints"  # torch.hub loads DINO's weights from here
        hub.mkdir(parents=True)
        if (weights / DINO).is_file():
            (hub / Path(DINO).name).symlink_to((weights / DINO).absolute())
        own = {"VBENCH_CACHE_DIR": str(weights.absolute()), "TORCH_HOME": str(out / "torch")}
        # of this process's surroundings only what finds programs: paths of our packages do not fit that Python
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        command = [str(python), str(WORKER), str(videos.absolute()), str(out), dimension, device]
        done = subprocess.run(command, env=kept | own, capture_output=True, text=True, cwd=out)
        if done.returncode or not (out / "result.json").is_file():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise Unavailable(f"vbench failed: {lines[-1] if lines else f'exit status {done.returncode}'}")
        return json.loads((out / "result.json").read_text())["videos"]

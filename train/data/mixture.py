"""One training mixture of downloaded video sets: `python -m train.data MODEL mix --real A=8 --synthetic B=1 --events C=1 --out F`.

    F/mixture.json                      the sources, their weights and numbers of clips
    F/real-0/<id>.mp4 .txt .npy         links to the videos; texts (labels.py) and camera-to-world poses beside them

Videos are not copied. What a source may have beside `<id>.mp4`, anywhere below its folder:

    <id>.txt                            Sekai-style fields, or else a plain description
    *.csv                               columns `videoFile` or `video`, and `caption` (Sekai's and OpenVid's tables)
    <id>.npy, <id>.npz                  poses; `extrinsics` [.., N, 3 or 4, 4] of an npz are c2w or w2c, which has to be said

Keys come from the fields, the folder's name or the poses. A clip with none of these is told to stand still, or, with
`--keys estimate`, what pose estimation sees (train/evaluation/pose.py). Training draws sources by weight (`order`).
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train.data.labels import ClipError, read_fields
from train.data.sekai import UNTOLD
from train.data.video import VideoError, read_video
from world_model.config import ModelConfig

FILE = "mixture.json"
KINDS = ("real", "synthetic", "events")
SHOWN = 8  # pictures of a clip that a captioner sees
Captioner = Callable[[np.ndarray, str], str]  # (pictures uint8 [n, H, W, 3], kind of the source) -> text


@dataclass(frozen=True)
class Source:
    """A folder of one kind; worlds follow its clips in `weight` of all cases, relative to the other sources' weights."""

    kind: str
    folder: str
    weight: float
    clips: int = 0


def parse_source(kind: str, text: str) -> Source:
    """Of "DIR=WEIGHT"; without a weight it is 1. Raises ValueError for a weight that is no positive number."""
    folder, separator, weight = text.rpartition("=")
    try:
        value = float(weight) if separator else 1.0
    except ValueError:
        value = 0.0
    if not value > 0 or value == float("inf"):
        raise ValueError(f"--{kind} {text}: expected FOLDER=WEIGHT with a positive number, such as clips/=8")
    return Source(kind, folder if separator else text, value)


def mix(
    config: ModelConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    extrinsics: str | None = None,
    estimate: bool = False,
    captioner: Captioner | None = None,
) -> list[Source]:
    """Writes the mixture `out`, and returns the sources with their numbers of clips. A clip that is there already is kept.

    extrinsics: "c2w" or "w2c", what the matrices of npz files are. estimate: keys by pose estimation where nothing tells them.
    captioner: what it says of a clip becomes its event, and its caption where it has none. Broken clips are named and left out.
    Raises ValueError without a source or for a captioner that gives no text, FileNotFoundError for a source without a usable video.
    """
    if not sources:
        raise ValueError("a mixture needs at least one of --real, --synthetic and --events")
    done = []
    for number, source in enumerate(sources):
        folder = Path(source.folder)
        videos, captions = sorted(folder.rglob("*.mp4")), read_tables(folder)
        clips = 0
        for video in tqdm(videos, desc=f"{source.kind} {folder.name}", unit="clip"):
            try:
                place = out / f"{source.kind}-{number}" / video.relative_to(folder)
                _write(config, source.kind, video, place, captions.get(video.stem), extrinsics, estimate, captioner)
                clips += 1
            except (ClipError, VideoError) as problem:
                tqdm.write(f"left out: {problem}", file=sys.stderr)
        if not clips:
            raise FileNotFoundError(f"no usable video in {source.folder!r}: expected <id>.mp4 anywhere below it")
        done.append(Source(source.kind, source.folder, source.weight, clips))
    unfinished = out / f"{FILE}.unfinished"
    unfinished.write_text(json.dumps([asdict(source) for source in done], indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, out / FILE)
    return done


def read_tables(folder: Path) -> dict[str, str]:
    """Captions by the name of a video without its ending, of all tables below `folder`."""
    captions = {}
    csv.field_size_limit(2**24)
    for path in sorted(folder.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name, caption = row.get("videoFile") or row.get("video"), (row.get("caption") or "").strip()
                if name and caption:
                    captions[Path(name).stem] = " ".join(caption.split())
    return captions


def _write(
    config: ModelConfig,
    kind: str,
    video: Path,
    place: Path,
    caption: str | None,
    extrinsics: str | None,
    estimate: bool,
    captioner: Captioner | None,
) -> None:
    """One clip of the mixture; its text is written last, so that a clip with a text is whole."""
    if place.with_suffix(".txt").is_file():
        return
    fields, plain = _texts(video.with_suffix(".txt"))
    caption = fields.get("Caption") or caption or plain
    poses = _poses(video, extrinsics)
    fields |= {"Caption": caption} if caption else {}
    if kind == "events" and caption and not any(name.startswith("Event") for name in fields):
        fields["Event"] = caption  # a description of what happens is what such sets have
    known = {"Keys", "Mouse"} <= fields.keys() or any(name.startswith(("Keys ", "Mouse ")) for name in fields)
    if not known and poses is None and not video.parent.name.startswith("Keys_"):
        fields |= _estimated(config, video) if estimate else {"Keys": "None", "Mouse": "·"}
    if captioner is not None:
        fields["Event"] = _told(config, video, kind, captioner)
        fields.setdefault("Caption", fields["Event"])
    fields.setdefault("Caption", UNTOLD)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(video.resolve())
    if poses is not None:
        np.save(place.with_suffix(".npy"), poses)
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    unfinished = place.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, place.with_suffix(".txt"))


def _texts(path: Path) -> tuple[dict[str, str], str | None]:
    """Sekai-style fields of a text file, or what it says where it has none of them."""
    if not path.is_file():
        return {}, None
    fields = read_fields(path)
    known = ("Keys", "Mouse", "Caption", "Event", "Start Frame", "End Frame", "Duration")
    if any(name.startswith(known) for name in fields):
        return fields, None
    return {}, " ".join(path.read_text(encoding="utf-8").split()) or None


def _poses(video: Path, extrinsics: str | None) -> np.ndarray | None:
    """Camera-to-world matrices [N, 4, 4] beside a video; None without. Raises ClipError for broken ones."""
    if video.with_suffix(".npy").is_file():
        return np.load(video.with_suffix(".npy"), allow_pickle=False)
    path = video.with_suffix(".npz")
    if not path.is_file():
        return None
    if extrinsics not in ("c2w", "w2c"):
        raise ClipError(
            f"{path}: say with --extrinsics whether its matrices are camera-to-world (c2w) or world-to-camera (w2c)"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = np.asarray(arrays["extrinsics"], np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise ClipError(f"{path}: no readable array 'extrinsics' ({error})") from error
    found = found.reshape(-1, *found.shape[-2:])
    if found.shape[1:] not in ((3, 4), (4, 4)) or not np.isfinite(found).all():
        raise ClipError(f"{path}: extrinsics must be finite numbers [N, 3 or 4, 4], got shape {list(found.shape)}")
    poses = np.tile(np.eye(4), (len(found), 1, 1))
    poses[:, :3] = found[:, :3]
    return np.linalg.inv(poses) if extrinsics == "w2c" else poses


def _estimated(config: ModelConfig, video: Path) -> dict[str, str]:
    """Fields with the keys that pose estimation sees, block by block, in frames of the video."""
    from train.evaluation.pose import held_keys

    pictures, indices, _ = read_video(video, config.height, config.width, config.fps)
    size, stride = config.frames_per_block, max(1, round(config.fps / 4))
    fields: dict[str, str] = {}
    for first in range(0, len(pictures) - 1, size):
        action = held_keys(pictures[first : first + size + 1], config.fps, config.camera, min(size, stride))
        stretch = f"{indices[first] + 1}-{indices[min(first + size, len(pictures)) - 1] + 1}"
        if action is not None:
            fields |= {f"Keys {stretch}": action.keys or "None", f"Mouse {stretch}": action.arrows or "·"}
    return fields or {"Keys": "None", "Mouse": "·"}


def _told(config: ModelConfig, video: Path, kind: str, captioner: Captioner) -> str:
    """What a captioner says of a clip, in one line."""
    pictures = read_video(video, config.height, config.width, config.fps)[0]
    shown = pictures[np.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).round().astype(int)]
    text = captioner(shown, kind)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the captioner must give a text that is not empty, got {text!r} for {video}")
    return " ".join(text.split())


def load_captioner(name: str) -> Captioner:
    """The function "module:function". Raises ValueError where there is none."""
    module, separator, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--captioner {name!r}: expected module:function, {error}") from error
    if not separator or not callable(found):
        raise ValueError(f"--captioner {name!r}: expected module:function with a function")
    return found


def order(folder: Path, videos: Sequence[Path], held_out: int) -> list[int]:
    """Numbers of `videos` below a mixture, some of them repeated, so that sources are drawn evenly in shares of their weights.

    The first `held_out` are clips of all sources in turn that do not come again. Without `mixture.json`: every clip once, in order.
    """
    path = folder / FILE
    if not path.is_file():
        return list(range(len(videos)))
    sources = [Source(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    names = [f"{source.kind}-{number}" for number, source in enumerate(sources)]
    groups: dict[str, list[int]] = {name: [] for name in names}
    for number, video in enumerate(videos):
        groups[video.relative_to(folder).parts[0]].append(number)
    first: list[int] = []
    while len(first) < held_out and (group := max(groups.values(), key=len)) and len(group) > 1:
        first.append(group.pop(0))
    shares = np.array([source.weight for source in sources]) / sum(source.weight for source in sources)
    total = max(len(groups[name]) / share for name, share in zip(names, shares))
    rest = [
        groups[name][i % len(groups[name])]
        for name, share in zip(names, shares)
        for i in range(round(total * share))
        if groups[name]
    ]
    return [*first, *rest]

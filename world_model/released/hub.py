"""Weights by name: a folder that is already here, or a download from the Hugging Face hub into one.

The download resumes where it stopped, takes pinned revisions, and says before it starts how much it needs and where it goes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_model.presets import PRESETS
from world_model.released.placement import LoadOptions, memory
from world_model.weights import find_weights, holds_weights

RECORD = "download.json"  # which revisions a folder was filled from, and whether it is complete


@dataclass(frozen=True)
class Source:
    """Files of one hub repository. revision None: its newest when first asked, and that one from then on (`RECORD`)."""

    repository: str
    revision: str | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class Remote:
    """One file on the hub; sha256 where the hub tells it (large files)."""

    repository: str
    revision: str
    name: str
    size: int
    sha256: str | None

    def is_whole(self, folder: Path) -> bool:
        path = folder / self.name
        return path.exists() and path.stat().st_size == self.size


SOURCES: dict[str, tuple[Source, ...]] = {
    "yume-5b": (
        Source("stdstu123/Yume-5B-720P", None, ("config.json", "diffusion_pytorch_model*")),
        Source(
            "Wan-AI/Wan2.2-TI2V-5B",
            "921dbaf3f1674a56f47e83fb80a34bac8a8f203e",
            ("Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/*"),
        ),
    )
}


def home(name: str) -> Path:
    """Where the weights called `name` are kept: below YUME_WEIGHTS, or in the user's cache."""
    root = os.environ.get("YUME_WEIGHTS")
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(root) / name if root else (Path(cache) if cache else Path.home() / ".cache") / "yume_gym" / name


def find_or_fetch(model: str | os.PathLike, options: LoadOptions | None = None) -> Path:
    """The weights folder of a name or path; a name that the hub knows is downloaded if it is not here.

    Such a name may lie below YUME_WEIGHTS, or YUME_WEIGHTS may be its folder.

    Raises what `find_weights` raises, and FileNotFoundError that says what to fetch by hand where the hub cannot be reached.
    """
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    if name not in SOURCES:
        return find_weights(model)
    folder, root = home(name), os.environ.get("YUME_WEIGHTS")
    if (folder / RECORD).exists() and not _record(folder)["complete"]:
        return fetch(name, options or LoadOptions())
    for place in (folder, *([Path(root)] if root else [])):
        if holds_weights(place):
            return place
    return fetch(name, options or LoadOptions())


def fetch(name: str, options: LoadOptions, say: Callable[[str], None] | None = None) -> Path:
    """Downloads the weights called `name` into their `home`, or what is still missing of them.

    Raises FileNotFoundError that says what to fetch by hand where the hub cannot be reached, OSError for too little disk space,
    ValueError where the hub has not what is expected.
    """
    from huggingface_hub import HfApi

    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    folder, hub = home(name), HfApi()
    record = _record(folder)
    with _reached(name):
        plan = [file for source in SOURCES[name] for file in _listing(hub, source, record["revisions"])]
    _announce(name, folder, plan, options, say)
    folder.mkdir(parents=True, exist_ok=True)
    record["revisions"] = {file.repository: file.revision for file in plan}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    for file in plan:
        if not file.is_whole(folder):
            with _reached(name):
                _download(hub, file, folder)
    (folder / RECORD).write_text(json.dumps({**record, "complete": True}, indent=1) + "\n")
    return folder


def _download(hub: Any, file: Remote, folder: Path) -> None:
    """One file, going on from what an earlier try has left. Raises ValueError where it is not what the hub says it is.

    (`hf_hub_download` begins a file anew after a stop of the program, which here may mean twenty gigabytes.)
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target = folder / file.name
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=hub.endpoint)
    with partial.open("ab") as stream:
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            expected_size=file.size,
            displayed_filename=file.name,
            headers=build_hf_headers(),
        )
    if file.sha256 and _sha256(partial) != file.sha256:
        partial.unlink()
        raise ValueError(f"{target} arrived damaged (its sha256 is not the hub's) and was removed: try again")
    partial.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def by_hand(name: str) -> str:
    """What to fetch and where to put it, without this program."""
    commands = [
        f"  hf download {source.repository} {' '.join(f'--include {pattern!r}' for pattern in source.files)}"
        f"{f' --revision {source.revision}' if source.revision else ''} --local-dir {home(name)}"
        for source in SOURCES[name]
    ]
    return "\n".join(
        [
            f"the weights of {name!r} are not here. Fetch them where there is a network:",
            *commands,
            f"and put that folder at {home(name)}, or set YUME_WEIGHTS to the folder that holds {name!r}, "
            "or pass its path as model=.",
        ]
    )


@contextmanager
def _reached(name: str) -> Iterator[None]:
    try:
        yield
    except _network_errors() as error:
        raise FileNotFoundError(f"{by_hand(name)}\n(the hub could not be reached: {error})") from error


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the hub's client lets through where there is no network: its own errors, and those of whichever HTTP library it uses."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    of_client = (kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins")
    return (*of_client, LocalEntryNotFoundError, ConnectionError, TimeoutError)


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {"complete": False, "revisions": {}}
    try:
        record = json.loads(path.read_text())
        return {"complete": bool(record["complete"]), "revisions": dict(record["revisions"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to check the download again") from error


def _listing(hub: Any, source: Source, recorded: dict[str, str]) -> list[Remote]:
    """What a source offers, at its revision."""
    wanted = source.revision or recorded.get(source.repository)
    info = hub.model_info(source.repository, revision=wanted, files_metadata=True)
    files = [
        Remote(source.repository, info.sha, entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in info.siblings
        if any(fnmatch.fnmatch(entry.rfilename, pattern) for pattern in source.files)
    ]
    absent = [pattern for pattern in source.files if not fnmatch.filter([file.name for file in files], pattern)]
    if absent:
        raise ValueError(f"{source.repository} at {info.sha} has no {absent[0]}: is this the right revision?")
    return files


def _announce(name: str, folder: Path, plan: list[Remote], options: LoadOptions, say: Callable[[str], None]) -> None:
    """Says what is fetched and what is needed. Raises OSError where the disk is too small."""
    total = sum(file.size for file in plan)
    missing = sum(file.size for file in plan if not file.is_whole(folder))
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    for file in plan:
        here = "  (here)" if file.is_whole(folder) else ""
        say(f"  {file.size / 2**30:7.2f} GiB  {file.name}{here}  from {file.repository} at {file.revision}")
    say(f"to fetch: {missing / 2**30:.1f} of {total / 2**30:.1f} GiB into {folder} ({free / 2**30:.1f} GiB free)")
    say(
        "memory between steps with these options, computed (docs/yume-5b.md): "
        + "; ".join(
            f"{part} {size / 2**30:.1f} GiB ({where})" for part, (where, size) in memory(PRESETS[name], options).items()
        )
    )
    if missing > free:
        raise OSError(
            f"{folder} needs {missing / 2**30:.1f} GiB more and the disk has {free / 2**30:.1f} GiB free: "
            "make room, or set YUME_WEIGHTS to a folder on another disk"
        )

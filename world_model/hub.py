"""Weights by name: a folder that is already here, or a download from the Hugging Face hub into one.

The download resumes where it stopped, takes pinned revisions, and says before it starts how much it needs and where it goes.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_model.config import PRESETS
from world_model.placement import LoadOptions, memory
from world_model.weights import find_weights, holds_weights

RECORD = "download.json"  # which revisions a folder was filled from, and whether it is complete


@dataclass(frozen=True)
class Source:
    """Files of one hub repository. revision None: its newest when first asked, and that one from then on (`RECORD`)."""

    repository: str
    revision: str | None
    files: tuple[str, ...]


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
    name = os.fspath(model)
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
        plan = [_listing(hub, source, record["revisions"]) for source in SOURCES[name]]
    _announce(name, folder, plan, options, say)
    folder.mkdir(parents=True, exist_ok=True)
    record["revisions"] = {repository: revision for repository, revision, _ in plan}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    with _reached(name):
        for repository, revision, sizes in plan:
            for file in sizes:
                hub.hf_hub_download(repository, file, revision=revision, local_dir=folder)
    for _, _, sizes in plan:
        for file, size in sizes.items():
            if (folder / file).stat().st_size != size:
                raise ValueError(
                    f"{folder / file} has not the size it has on the hub ({size} bytes): delete it and try again"
                )
    (folder / RECORD).write_text(json.dumps({**record, "complete": True}, indent=1) + "\n")
    return folder


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
            f"and put that folder at {home(name)}, or set YUME_WEIGHTS to the folder that holds {name!r}, or pass its path as model=.",
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


def _listing(hub: Any, source: Source, recorded: dict[str, str]) -> tuple[str, str, dict[str, int]]:
    """(repository, commit, {file: bytes}) of what a source offers."""
    wanted = source.revision or recorded.get(source.repository)
    info = hub.model_info(source.repository, revision=wanted, files_metadata=True)
    sizes = {
        entry.rfilename: entry.size
        for entry in info.siblings
        if any(fnmatch.fnmatch(entry.rfilename, pattern) for pattern in source.files)
    }
    absent = [pattern for pattern in source.files if not fnmatch.filter(sizes, pattern)]
    if absent:
        raise ValueError(f"{source.repository} at {info.sha} has no {absent[0]}: is this the right revision?")
    return source.repository, info.sha, sizes


def _announce(
    name: str,
    folder: Path,
    plan: list[tuple[str, str, dict[str, int]]],
    options: LoadOptions,
    say: Callable[[str], None],
) -> None:
    """Says what is fetched and what is needed. Raises OSError where the disk is too small."""
    present = {file: (folder / file).stat().st_size for *_, sizes in plan for file in sizes if (folder / file).exists()}
    total = sum(size for *_, sizes in plan for size in sizes.values())
    missing = total - sum(present.values())
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    for repository, revision, sizes in plan:
        say(f"{repository} at {revision}:")
        for file, size in sizes.items():
            say(f"  {size / 2**30:7.2f} GiB  {file}{'  (here)' if present.get(file) == size else ''}")
    say(f"to fetch: {missing / 2**30:.1f} of {total / 2**30:.1f} GiB into {folder} ({free / 2**30:.1f} GiB free)")
    say("memory between steps with these options, computed (docs/yume-5b.md): " + "; ".join(
        f"{part} {size / 2**30:.1f} GiB ({where})" for part, (where, size) in memory(PRESETS[name], options).items()
    ))  # fmt: skip
    if missing > free:
        raise OSError(
            f"{folder} needs {missing / 2**30:.1f} GiB more and the disk has {free / 2**30:.1f} GiB free: "
            "make room, or set YUME_WEIGHTS to a folder on another disk"
        )

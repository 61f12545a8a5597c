"""Weights by name from a hub on this machine: plan, resumed download, pinned revisions; and what is said without a network."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from world_model.model import WorldModel
from world_model.released import hub
from world_model.released.placement import LoadOptions

NEWEST, PINNED = "a" * 40, "b" * 40
FILES = {
    "someone/transformer": {
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 4096,
        "demo.mp4": b"not wanted",
    },
    "others/parts": {"vae.pth": b"v" * 5000, "tokenizer/tokenizer.json": b"{}"},
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """What the client asks of huggingface.co: listings, and files by range. Remembers what was asked; `cut` breaks off answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str, str | None]] = []
        self.cut, self.flip = 0, False


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            repository = "/".join(path.split("/")[3:5])
            revision = path.split("/")[6] if "/revision/" in path else NEWEST
            siblings = [
                {
                    "rfilename": name,
                    "size": len(data),
                    "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1},
                }
                for name, data in FILES[repository].items()
            ]
            self.send(json.dumps({"id": repository, "sha": revision, "siblings": siblings}).encode(), {}, body)
            return
        _, owner, name, _, revision, file = path.split("/", 5)
        data = FILES[f"{owner}/{name}"][file]
        headers = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        self.send(data[::-1][:-1] + b"!" if self.server.flip and file == "vae.pth" else data, headers, body)

    def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            cut = self.server.cut and len(data) > self.server.cut
            self.wfile.write(data[start : self.server.cut] if cut else data[start:])
            if cut:
                self.wfile.flush()
                self.close_connection = True


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=endpoint))
    monkeypatch.setenv("YUME_WEIGHTS", str(tmp_path / "weights"))
    sources = (
        hub.Source("someone/transformer", None, ("config.json", "*.safetensors")),
        hub.Source("others/parts", PINNED, ("vae.pth", "tokenizer/*")),
    )
    monkeypatch.setitem(hub.SOURCES, "yume-5b", sources)
    monkeypatch.setattr(hub, "memory", lambda config, options: {"transformer": ("cuda", 10 * 2**30)})
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch() -> tuple[Path, list[str]]:
    said: list[str] = []
    return hub.fetch("yume-5b", LoadOptions(), said.append), said


def downloads(server: Hub) -> list[str]:
    return [path for command, path, _ in server.asked if command == "GET" and "/resolve/" in path]


def test_a_name_is_fetched_into_its_folder_and_then_found_there(server):
    folder, said = fetch()
    for files in FILES.values():
        for name, data in files.items():
            assert (folder / name).exists() == (name != "demo.mp4")
            assert name == "demo.mp4" or (folder / name).read_bytes() == data
    text = "\n".join(said)
    assert f"vae.pth  from others/parts at {PINNED}" in text
    assert "to fetch: 0.0 of 0.0 GiB" in text
    assert "GiB free" in text
    assert "transformer 10.0 GiB (cuda)" in text
    assert all(f"/{PINNED}/" in path for path in downloads(server) if "others/parts" in path)
    server.asked.clear()
    assert hub.find_or_fetch("yume-5b") == folder
    assert server.asked == []


def test_a_broken_download_is_told_and_goes_on_where_it_stopped(server, monkeypatch):
    server.cut = 300_000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(FileNotFoundError, match=r"could not be reached"):
        fetch()
    assert (hub.home("yume-5b") / "model.safetensors.partial").stat().st_size == 300_000
    server.cut, before = 0, len(server.asked)
    folder = hub.find_or_fetch("yume-5b")
    ranges = [asked for _, path, asked in server.asked[before:] if "model.safetensors" in path and asked]
    assert (folder / "model.safetensors").read_bytes() == FILES["someone/transformer"]["model.safetensors"]
    assert ranges == ["bytes=300000-"]


def test_a_file_that_arrives_damaged_is_removed(server, monkeypatch):
    server.flip = True
    with pytest.raises(ValueError, match=r"vae\.pth arrived damaged"):
        fetch()
    assert not list(hub.home("yume-5b").glob("vae*"))
    server.flip = False
    assert (fetch()[0] / "vae.pth").read_bytes() == FILES["others/parts"]["vae.pth"]


def test_the_newest_revision_is_kept_once_it_was_chosen(server, monkeypatch):
    folder, _ = fetch()
    assert json.loads((folder / hub.RECORD).read_text())["revisions"] == {
        "someone/transformer": NEWEST,
        "others/parts": PINNED,
    }
    (folder / "model.safetensors").unlink()
    (folder / hub.RECORD).write_text(json.dumps({"complete": False, "revisions": {"someone/transformer": "c" * 40}}))
    server.asked.clear()
    hub.find_or_fetch("yume-5b")
    assert any(f"/revision/{'c' * 40}" in path for _, path, _ in server.asked)


def test_too_little_disk_is_told_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match=r"the disk has 0\.0 GiB free"):
        fetch()
    assert downloads(server) == []


def test_a_repository_without_an_expected_file_is_named(server, monkeypatch):
    monkeypatch.setitem(hub.SOURCES, "yume-5b", (hub.Source("others/parts", PINNED, ("missing.bin",)),))
    with pytest.raises(ValueError, match=r"others/parts at b+ has no missing\.bin"):
        fetch()


def test_without_a_network_it_is_said_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    closed = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", closed)
    monkeypatch.setenv("YUME_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        WorldModel.load("yume-5b", device="cpu")
    text = str(raised.value)
    for part in (
        "stdstu123/Yume-5B-720P",
        "Wan2.2_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl",
        str(tmp_path / "yume-5b"),
        "--revision 921dbaf3f1674a56f47e83fb80a34bac8a8f203e",
        "YUME_WEIGHTS",
    ):
        assert part in text
    assert not (tmp_path / "yume-5b").exists()


@pytest.mark.parametrize("inside", [True, False], ids=["folder below", "the folder itself"])
def test_a_folder_that_is_here_needs_no_network(inside, monkeypatch, tmp_path):
    place = tmp_path / "yume-5b" if inside else tmp_path
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text("{}")
    monkeypatch.setenv("YUME_WEIGHTS", str(tmp_path))
    assert hub.find_or_fetch("yume-5b") == place


def test_a_damaged_record_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("YUME_WEIGHTS", str(tmp_path))
    (tmp_path / "yume-5b").mkdir()
    (tmp_path / "yume-5b" / hub.RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"download\.json is damaged"):
        hub.find_or_fetch("yume-5b")

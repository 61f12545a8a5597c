"""Recordings of any Gymnasium environment: their format on disk (`episodes.py`), and what writes it."""

from train.recordings.episodes import EpisodeFiles, open_episodes
from train.recordings.format import Episode, Provenance, Recording, RecordingError, read_recording
from train.recordings.writer import EpisodeWriter

__all__ = [
    "Episode",
    "EpisodeFiles",
    "EpisodeWriter",
    "Provenance",
    "Recording",
    "RecordingError",
    "open_episodes",
    "read_recording",
]

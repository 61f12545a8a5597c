"""What papers print for Yume-Bench: constants, each beside the table it stands in. Nothing here was measured by us."""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv:2512.22096"


@dataclass(frozen=True)
class Published:
    """One printed row: figures by the columns of `COLUMNS`, None where the paper prints none; where it stands."""

    name: str
    figures: tuple[float | None, ...]
    where: str


COLUMNS = (
    "seconds",
    "instruction_following",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "aesthetic_quality",
    "imaging_quality",
)
NOTHING: tuple[None, ...] = (None,) * len(COLUMNS)
ROWS = (
    Published("Wan-2.1", (611, 0.057, 0.859, 0.899, 0.961, 0.494, 0.695), f"{PAPER}, table 1"),
    Published("Wan-2.2", NOTHING, f"no row in table 1 of {PAPER}v1"),
    Published("MatrixGame", (971, 0.271, 0.911, 0.932, 0.983, 0.435, 0.750), f"{PAPER}, table 1"),
    Published("Yume", (572, 0.657, 0.932, 0.941, 0.986, 0.518, 0.739), f"{PAPER}, table 1"),
    Published("Yume1.5", (8, 0.836, 0.932, 0.945, 0.985, 0.506, 0.728), f"{PAPER}, table 1"),
    Published("Yume1.5, spatial compression", (None, 0.767, 0.935, 0.945, 0.973, 0.504, 0.733), f"{PAPER}, table 2"),
)

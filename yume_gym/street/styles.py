"""The architecture of the districts: colours, storeys and windows that buildings are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from yume_gym.street.layout import BRICK, GLASS, PASTEL, SHOPS

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Palette:
    """Colours 0..1, of which each building gets one of every kind."""

    walls: tuple[Colour, ...]
    trims: tuple[Colour, ...]
    panes: tuple[Colour, ...]


@dataclass(frozen=True)
class Storeys:
    """A building from the ground to the roof; metres."""

    count: tuple[int, int]  # fewest and most storeys above the ground floor
    height: float = 3.2  # of a storey
    ground_height: float = 3.8  # of the ground floor
    band: float = 0.0  # above 0: a band of trim between storeys
    cornice: float = 0.7  # height of the cornice


@dataclass(frozen=True)
class Windows:
    """The windows above the ground floor."""

    bay: float = 3.0  # metres from one window to the next
    width: float = 0.46  # share of the bay
    height: float = 0.58  # share of the storey
    frame: float = 0.14  # metres
    shutter: float = 0.0  # chance of coloured shutters
    sheen: float = 0.25  # share of the sky that panes mirror
    lit: float = 0.5  # share that is lit by night


@dataclass(frozen=True)
class Style:
    """What the buildings of a district have in common."""

    palette: Palette
    storeys: Storeys
    windows: Windows = Windows()
    shop: float = 0.0  # chance of shops at street level
    gable: float = 0.0  # chance of a tiled hip roof


ACCENTS: tuple[Colour, ...] = (
    (0.90, 0.16, 0.14), (0.10, 0.36, 0.85), (0.98, 0.75, 0.08), (0.06, 0.60, 0.35), (0.85, 0.15, 0.60),
    (0.98, 0.45, 0.05), (0.05, 0.65, 0.72), (0.48, 0.20, 0.75),
)  # fmt: skip
STYLES: dict[int, Style] = {
    BRICK: Style(
        Palette(
            walls=((0.66, 0.27, 0.20), (0.50, 0.22, 0.19), (0.78, 0.45, 0.25), (0.58, 0.35, 0.26), (0.72, 0.36, 0.33)),
            trims=((0.93, 0.88, 0.78), (0.85, 0.80, 0.70)),
            panes=((0.16, 0.20, 0.27), (0.20, 0.24, 0.28)),
        ),
        Storeys(count=(3, 5), band=0.10),
        shop=0.35,
    ),
    GLASS: Style(
        Palette(
            walls=((0.82, 0.86, 0.90), (0.30, 0.36, 0.42), (0.92, 0.92, 0.90), (0.20, 0.26, 0.36)),
            trims=((0.88, 0.92, 0.95), (0.25, 0.30, 0.36)),
            panes=((0.16, 0.47, 0.62), (0.20, 0.34, 0.66), (0.12, 0.52, 0.50), (0.52, 0.40, 0.28), (0.38, 0.32, 0.60)),
        ),
        Storeys(count=(6, 10), height=3.6, ground_height=4.6, cornice=0.9),
        Windows(bay=4.0, width=0.86, height=0.80, frame=0.0, sheen=0.45, lit=0.6),
    ),
    PASTEL: Style(
        Palette(
            walls=((0.97, 0.80, 0.55), (0.96, 0.68, 0.66), (0.66, 0.86, 0.74), (0.68, 0.78, 0.95), (0.98, 0.90, 0.62),
                   (0.83, 0.70, 0.90), (0.95, 0.95, 0.90)),
            trims=((0.99, 0.98, 0.94),),
            panes=((0.24, 0.32, 0.42), (0.28, 0.34, 0.40)),
        ),
        Storeys(count=(2, 3), cornice=0.4),
        Windows(bay=3.4, width=0.36, height=0.56, frame=0.2, shutter=0.8),
        shop=0.3, gable=1.0,
    ),
    SHOPS: Style(
        Palette(
            walls=((0.80, 0.72, 0.60), (0.42, 0.52, 0.50), (0.62, 0.48, 0.66), (0.86, 0.82, 0.76), (0.38, 0.42, 0.58),
                   (0.75, 0.60, 0.42)),
            trims=((0.96, 0.94, 0.88), (0.22, 0.23, 0.27)),
            panes=((0.20, 0.26, 0.34), (0.24, 0.27, 0.36)),
        ),
        Storeys(count=(1, 3), cornice=0.8),
        Windows(bay=2.8, lit=0.6),
        shop=1.0,
    ),
}  # fmt: skip

"""Light and weather as a state of blend weights that fade, and the numbers a renderer needs of them.

`Atmosphere` is immutable; `Atmosphere.towards` moves it one frame on. `Atmosphere.vector` is what kernels read.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from yume_gym.street.textures import SUN_BY_DAY, SUN_LOW

LIGHTS = ("day", "overcast", "golden", "night")
WEATHERS = ("clear", "rain", "snow", "fog")
_ALL_WEATHERS = (*WEATHERS, "heavy_rain")
FADE_SECONDS = 1.0

# entries of the vector
SKY_TOP, SKY_LOW, AMBIENT, SUN, SUN_DIR, CLOUD = 0, 3, 6, 9, 12, 15
HAZE, DARK, WET, SNOW, RAINFALL, SNOWFALL, COVER, DISC, DAY_SUN, LOW_SUN, FIRE, BURNING = range(18, 30)
ENTRIES = 30

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Sky:
    """What is seen of the sky without its sun; colours and shares are 0..1."""

    top: Colour
    horizon: Colour
    cloud: Colour
    cover: float  # share of clouds, by night of stars too, that shows


@dataclass(frozen=True)
class Sun:
    """The sun, by night the moon."""

    colour: Colour  # of its light; may exceed 1
    direction: tuple[float, ...]  # towards it (x, height, z), of about length 1
    disc: float  # how clearly its disc shows, 0..1
    high: float  # weight of the shadows of the sun by day, 0..1
    low: float  # weight of the shadows of the low sun, 0..1


@dataclass(frozen=True)
class Lighting:
    """The sky and the light of a time of day in clear weather."""

    sky: Sky
    sun: Sun
    ambient: Colour  # light from all sides; may exceed 1
    haze: float  # extinction, 1/m
    dark: float  # how much the lamps shine, 0..1

    def row(self) -> np.ndarray:
        """float64 [24]: six colours or vectors of three, then six numbers, in the order that `Atmosphere.vector` reads."""
        sky, sun = self.sky, self.sun
        triples = (sky.top, sky.horizon, self.ambient, sun.colour, sky.cloud, sun.direction)
        return np.append(np.ravel(triples), (self.haze, self.dark, sky.cover, sun.disc, sun.high, sun.low))


LIGHTINGS: dict[str, Lighting] = {
    "day": Lighting(
        Sky(top=(0.16, 0.42, 0.88), horizon=(0.72, 0.86, 0.98), cloud=(1.0, 1.0, 1.0), cover=0.9),
        Sun(colour=(0.52, 0.47, 0.36), direction=tuple(SUN_BY_DAY), disc=1, high=1, low=0),
        ambient=(0.60, 0.64, 0.72),
        haze=0.004,
        dark=0,
    ),
    "overcast": Lighting(
        Sky(top=(0.60, 0.64, 0.70), horizon=(0.80, 0.82, 0.85), cloud=(0.52, 0.55, 0.61), cover=0.8),
        Sun(colour=(0.04, 0.04, 0.04), direction=tuple(SUN_BY_DAY), disc=0, high=0, low=0),
        ambient=(0.76, 0.78, 0.82),
        haze=0.006,
        dark=0,
    ),
    "golden": Lighting(
        Sky(top=(0.36, 0.38, 0.66), horizon=(1.0, 0.66, 0.36), cloud=(1.0, 0.62, 0.52), cover=0.9),
        Sun(colour=(0.72, 0.40, 0.12), direction=tuple(SUN_LOW), disc=1, high=0, low=1),
        ambient=(0.60, 0.46, 0.47),
        haze=0.006,
        dark=0.25,
    ),
    "night": Lighting(
        Sky(top=(0.015, 0.025, 0.09), horizon=(0.07, 0.08, 0.20), cloud=(0.12, 0.13, 0.24), cover=0.5),
        Sun(colour=(0.08, 0.09, 0.15), direction=tuple(SUN_BY_DAY), disc=0.7, high=0, low=0),
        ambient=(0.24, 0.26, 0.40),
        haze=0.004,
        dark=1,
    ),
}


@dataclass(frozen=True)
class Weather:
    """What a weather does to a lighting."""

    grey: float = 0.0  # share of the horizon's grey in the sky, 0..1
    bright: float = 1.0  # factor of the sky and of the ambient light
    sun: float = 1.0  # factor of the sun's light
    haze: float = 0.0  # added extinction, 1/m
    wet: float = 0.0  # how wet the ground is, 0..1
    snow: float = 0.0  # how white what faces upwards is, 0..1
    rainfall: float = 0.0  # share of the most drops, 0..1
    snowfall: float = 0.0  # share of the most flakes, 0..1


EFFECTS: dict[str, Weather] = {
    "clear": Weather(),
    "rain": Weather(grey=0.85, bright=0.72, sun=0.1, haze=0.010, wet=0.8, rainfall=0.5),
    "heavy_rain": Weather(grey=1.0, bright=0.58, sun=0.0, haze=0.018, wet=1.0, rainfall=1.0),
    "snow": Weather(grey=0.9, bright=1.04, sun=0.15, haze=0.012, snow=1.0, snowfall=1.0),
    "fog": Weather(grey=1.0, bright=0.95, sun=0.05, haze=0.075),
}


@dataclass(frozen=True)
class Atmosphere:
    """Blend weights of the lights and of the weathers ("heavy_rain" last)."""

    light: tuple[float, ...]
    weather: tuple[float, ...]

    @classmethod
    def of(cls, light: str, weather: str) -> Atmosphere:
        """Wholly one light and one weather. Raises ValueError for unknown names."""
        return cls(_one_hot(light, LIGHTS, "light"), _one_hot(weather, _ALL_WEATHERS, "weather"))

    def towards(self, light: str, weather: str, seconds: float) -> Atmosphere:
        """The blend some time later, on a straight way to another light and weather."""
        goal, step = Atmosphere.of(light, weather), seconds / FADE_SECONDS
        return Atmosphere(_move(self.light, goal.light, step), _move(self.weather, goal.weather, step))

    def vector(self) -> np.ndarray:
        """float64 [ENTRIES] for the kernels; FIRE and BURNING (the building's index) are left at 0 and -1."""
        lightings, effects = _tables()
        light, weather = np.array(self.light), np.array(self.weather)
        top, low, ambient, sun, cloud, direction, rest = np.split(light @ lightings / light.sum(), range(3, 19, 3))
        haze, dark, cover, disc, day_sun, low_sun = rest
        grey, bright, sun_left, more_haze, wet, snow, rainfall, snowfall = weather @ effects / weather.sum()
        grey_of = 0.4 * low + 0.6 * low.mean()
        out = np.zeros(ENTRIES)
        out[SKY_TOP : SKY_TOP + 3] = bright * (top * (1 - grey) + 0.85 * grey_of * grey)
        out[SKY_LOW : SKY_LOW + 3] = bright * (low * (1 - grey) + 0.92 * grey_of * grey)
        out[AMBIENT : AMBIENT + 3] = bright * (ambient + 0.22 * grey * sun)
        out[SUN : SUN + 3] = sun_left * sun
        out[SUN_DIR : SUN_DIR + 3] = direction / np.sqrt(direction @ direction)
        out[CLOUD : CLOUD + 3] = bright * cloud
        out[HAZE], out[DARK] = haze + more_haze, min(1.0, dark + 0.25 * rainfall)
        out[WET], out[SNOW], out[RAINFALL], out[SNOWFALL] = wet, snow, rainfall, snowfall
        out[COVER], out[DISC] = cover * (1 - grey), disc * (1 - grey)
        out[DAY_SUN], out[LOW_SUN] = day_sun, low_sun
        out[BURNING] = -1
        return out


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The lightings [4, 24] and the weathers' effects [5, 8], the latter's columns in the order of their fields."""
    lightings = [LIGHTINGS[name].row() for name in LIGHTS]
    return np.array(lightings), np.array([astuple(EFFECTS[name]) for name in _ALL_WEATHERS])


def _one_hot(name: str, names: tuple[str, ...], what: str) -> tuple[float, ...]:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}: use one of {', '.join(names)}")
    return tuple(float(name == other) for other in names)


def _move(now: tuple[float, ...], goal: tuple[float, ...], step: float) -> tuple[float, ...]:
    return tuple(a + min(max(b - a, -step), step) for a, b in zip(now, goal))

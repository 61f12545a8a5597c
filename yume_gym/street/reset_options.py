"""What the options of the street's `reset` ask for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from yume_gym.street.atmosphere import LIGHTS, WEATHERS
from yume_gym.street.captions import DISTRICT_WORDS, parse_text
from yume_gym.street.events import check_text

FARTHEST = 1e6  # metres from the origin, radians: beyond, positions lose the precision that a ray caster needs


def wishes_of_text(text: object) -> tuple[str | None, str | None, str | None]:
    """(light, weather, district) that a start text asks for. Raises ValueError where it asks for none of them."""
    if text is None:
        return None, None, None
    wishes = parse_text(check_text(text, "options['text']"))
    if wishes == (None, None, None):
        raise ValueError(
            f"the street finds nothing it knows in the text {text!r}: name a light ({', '.join(LIGHTS)}), "
            f"a weather ({', '.join(WEATHERS)}) or a district ({', '.join(DISTRICT_WORDS)})"
        )
    return wishes


def start_of_pose(pose: object) -> dict[str, Any]:
    """The simulator's place and direction of an option ``pose``; none of them without one."""
    if pose is None:
        return {}
    wanted = "options['pose'] must be a camera-to-world matrix, (4, 4) finite numbers as in info['pose'][-1]"
    try:
        given = np.asarray(pose)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}: {error}") from error
    if given.dtype.kind not in "iuf":
        raise TypeError(f"{wanted}; got an array of {given.dtype}")
    matrix = given.astype(float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"{wanted}; got shape {matrix.shape}")
    ahead = matrix[:3, 2]
    if not math.isclose(float(np.linalg.norm(ahead)), 1.0, abs_tol=1e-3):
        raise ValueError(f"{wanted}; the third column must be a direction of length 1")
    if np.abs(matrix[:3, 3]).max() > FARTHEST:
        raise ValueError(
            f"{wanted}; its place must be within {FARTHEST:g} m of the origin, got {matrix[:3, 3].tolist()}"
        )
    return {
        "position": (float(matrix[0, 3]), float(matrix[2, 3])),
        "yaw": math.atan2(ahead[0], ahead[2]),
        "pitch": math.asin(float(np.clip(-ahead[1], -1, 1))),
    }

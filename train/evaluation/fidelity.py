"""How long does the dream stay the street it began in? Same start picture, same keys, against the truth, by horizon."""

from __future__ import annotations

from train.evaluation.control import Records, between, joined, mean

HORIZONS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # seconds: where the bins of time end


def by_horizon(records: Records, seconds: float) -> dict[str, dict[str, float]]:
    """psnr (dB), ssim and perceptual distance for each bin of time that the walks reach."""
    length = max(len(record["action"]) for record in records) * seconds
    ends = [end for end in HORIZONS if seconds <= end <= length] or [length]
    table = {}
    for begin, end in zip((0.0, *ends), ends):
        part = between(records, begin, end, seconds)
        table[f"{begin:g}-{end:g}s"] = {name: mean(joined(part, name)) for name in ("psnr", "ssim", "distance")}
    return table

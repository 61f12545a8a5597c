"""Writes docs/plan.md and docs/plan.png: what yume-5b costs on real GPUs, beside the paper's 12 frames per second.

python docs/plan.py      (a minute or two; needs the extras yume-5b and dev)
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from world_model.cost.plan import DEVICES, Plan, make_plan, report, resized
from world_model.presets import get_preset

PAGE = Path(__file__).with_name("plan.md")
PICTURE = PAGE.with_suffix(".png")
UTILISATION = 0.4
PAPER_FPS, PAPER_SIZE = 12.0, "544x960"  # Yume1.5 on Yume-Bench: 96 frames in 8 s on one A100

HEADER = """<!-- Written by docs/plan.py: edit that. -->
# yume-5b in numbers

What one block costs at the paper's size and at the preset's, counted by running the model's own code on the meta device
(`python -m world_model.cost.plan yume-5b --size 544x960`). Not timed on a GPU: frames per second are a GPU's peak, times the
utilisation said, over the operations counted. Only matrix products, convolutions and attention are counted.
"joint" is how the released weights attend; "cached" needs a model trained so that history attends to history alone.
"released" is the released packing, whose last rule ends at 1366 latents (the released code's table of positions ends at 1016);
"tiers" is `Tiers()` of config.py, constant for ever, which the released weights were not trained with.
"""


def draw(plan: Plan) -> None:
    """Frames per second over history, and where a block's operations go."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    device = DEVICES[0]
    for attention, style in (("joint", "-"), ("cached", "--")):
        some = [b for b in plan.blocks if b.packing == "released" and b.attention == attention]
        speeds = [plan.frames_per_second(b, device, UTILISATION) for b in some]
        left.plot([b.history for b in some], speeds, style, marker="o", color="C0", label=f"released, {attention}")
        tiers = next(b for b in plan.blocks if b.packing == "tiers" and b.attention == attention)
        speed = plan.frames_per_second(tiers, device, UTILISATION)
        left.plot([5, tiers.history], [speed, speed], style, color="C1", label=f"tiers, {attention}")
    left.axhline(PAPER_FPS, color="black", linewidth=1)
    left.text(5, PAPER_FPS, " the paper's 12 frames/s on one A100", va="bottom")
    left.set(xscale="log", ylim=(0, 1.2 * PAPER_FPS), xlabel="history, latent frames", ylabel="frames per second")
    left.set_title(
        f"{device.name} at {UTILISATION:.0%} of its peak, {plan.config.height}x{plan.config.width}", fontsize=10
    )
    left.legend(fontsize=8)
    names = [f"{b.packing} {b.attention}\n{'any' if b.packing == 'tiers' else b.history}" for b in plan.blocks]
    parts = {
        "conditions, once": [b.conditions.flops for b in plan.blocks],
        "sampler steps": [b.steps * b.step.flops for b in plan.blocks],
        "decoding": [plan.decoder.cost.flops for _ in plan.blocks],
    }
    bottom = [0.0] * len(names)
    for i, (name, values) in enumerate(parts.items()):
        tera = [v / 1e12 for v in values]
        right.barh(names, tera, left=bottom, color=f"C{i + 2}", label=name)
        bottom = [a + b for a, b in zip(bottom, tera, strict=True)]
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="TFLOP of a block", xlim=(0, 1.35 * max(bottom)))
    right.set_title("where they go", fontsize=10)
    right.legend(fontsize=8, loc="center right")
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def page(plans: list[Plan]) -> str:
    """The whole page as Markdown; the first plan is the paper's."""
    first = plans[0]
    rows = [b for b in first.blocks if b.packing == "released" and b.attention == "joint"]
    seconds = 96 / PAPER_FPS
    blocks = 96 / first.config.frames_per_block
    both = [(b.flops + first.decoder.cost.flops) * blocks / seconds / DEVICES[0].flops for b in rows[:2]]
    alone = [b.flops * blocks / seconds / DEVICES[0].flops for b in rows[:2]]
    paper = (
        f"The paper's 96 frames in 8 s on one A100 would take {both[0]:.0%} of its peak throughout (at 5 history latents; "
        f"{both[1]:.0%} at 23) if decoding is part of it, {alone[0]:.0%} ({alone[1]:.0%}) if it is not."
    )
    parts = [HEADER, f"![frames per second and operations]({PICTURE.name})", paper]
    parts += [f"## {p.config.height}x{p.config.width}\n\n{report(p, UTILISATION)}" for p in plans]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    config = get_preset("yume-5b")
    plans = [make_plan(resized(config, size)) for size in (PAPER_SIZE, None)]
    draw(plans[0])
    PAGE.write_text(page(plans), encoding="utf-8")


if __name__ == "__main__":
    main()

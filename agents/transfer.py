"""Is an agent that was trained in a generated world good in the real one? Trains in both, tests in both:

    python -m agents.transfer --model runs/takecover --recording data/takecover --steps 100000 --seeds 3 --out runs/transfer

`--out` gets report.json, report.md, transfer.png and the agents. A stopped run goes on with the same command. The gap of an agent
is its mean return in the generated world minus that in the real one: an agent that exploits the model's errors has a large one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from agents.evaluate import RESAMPLES, Result, evaluate, interval
from agents.ppo import Settings, learn
from agents.worlds import Where

RANDOM, GENERATED, REAL = "random", "PPO in the generated world", "PPO in the real world"


@dataclass(frozen=True)
class Plan:
    """What is compared. Episodes end after `longest` steps in both worlds; while an agent learns in the generated one, after
    `horizon` steps already: errors of a model add up, and an agent learns to exploit them (MBPO, arXiv 1906.08253)."""

    model: str
    recording: str
    steps: int
    seeds: int
    episodes: int
    longest: int
    worlds: int
    horizon: int = 20

    @property
    def places(self) -> dict[str, Where]:
        return {
            "generated": Where(arguments={"model": self.model}, longest=self.longest),
            "real": Where(recording=self.recording, longest=self.longest),
        }


def run(plan: Plan, out: Path) -> dict[str, dict[str, list[Result]]]:
    """Results by agent and world, one of each seed. What was measured before is read from `out`."""
    agents = {RANDOM: None, GENERATED: "generated", REAL: "real"}
    results: dict[str, dict[str, list[Result]]] = {name: {place: [] for place in plan.places} for name in agents}
    for name, trained_in in agents.items():
        for seed in range(plan.seeds):
            agent = "random"
            if trained_in is not None:
                folder = out / f"{trained_in}-{seed}"
                where = plan.places[trained_in]
                where = replace(where, longest=plan.horizon) if trained_in == "generated" else where
                learn(where, Settings(steps=plan.steps, worlds=plan.worlds, seed=seed), folder)
                agent = str(folder)
            for place, where in plan.places.items():
                file = out / "results" / f"{trained_in or 'random'}-{seed}-{place}.json"
                results[name][place].append(measured(file, agent, where, plan, seed))
                write(plan, results, out)
    return results


def measured(file: Path, agent: str, where: Where, plan: Plan, seed: int) -> Result:
    """The result in `file`, measured now if it is not there."""
    if not file.is_file():
        result = evaluate(agent, where, plan.episodes, plan.worlds, 10_000 + seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(result)))
    kept = json.loads(file.read_text())
    return Result(tuple(kept["returns"]), tuple(kept["lengths"]), kept["mean"], kept["low"], kept["high"])


def pooled(results: Sequence[Result]) -> tuple[float, float, float]:
    """Mean return and its 95% interval over all episodes; with three seeds or more, seeds are drawn, too."""
    if len(results) < 3:
        every = [value for result in results for value in result.returns]
        return float(np.mean(every)), *interval(every)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // 10):
        drawn = [np.asarray(results[i].returns) for i in rng.integers(len(results), size=len(results))]
        means.append(np.mean([values[rng.integers(len(values), size=len(values))].mean() for values in drawn]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([result.mean for result in results])), float(low), float(high)


def gap(results: dict[str, list[Result]]) -> tuple[float, float, float]:
    """Mean return in the generated world minus that in the real one, and its 95% interval (of independent means)."""
    (made, made_low, made_high), (real, real_low, real_high) = pooled(results["generated"]), pooled(results["real"])
    below = np.hypot(made - made_low, real_high - real)
    above = np.hypot(made_high - made, real - real_low)
    return made - real, float(made - real - below), float(made - real + above)


def write(plan: Plan, results: dict[str, dict[str, list[Result]]], out: Path) -> None:
    """report.json, report.md and transfer.png of the agents that were measured in both worlds."""
    done = {name: places for name, places in results.items() if all(places.values())}
    if not done:
        return
    lines = ["| agent | generated world | real world | gap | alarm |", "|---|---|---|---|---|"]
    for name, places in done.items():
        (made, *made_ends), (real, *real_ends), (difference, low, high) = (
            pooled(places["generated"]), pooled(places["real"]), gap(places)
        )  # fmt: skip
        alarm = "yes" if low > 0 else "no"
        ends = [f"({a:.3g} to {b:.3g})" for a, b in (made_ends, real_ends, (low, high))]
        lines.append(
            f"| {name} | {made:.3g} {ends[0]} | {real:.3g} {ends[1]} | {difference:+.3g} {ends[2]} | {alarm} |"
        )
    seeds = min(len(places["real"]) for places in done.values())
    lines.append(
        f"\n{plan.steps} steps of training, {seeds} seeds, {plan.episodes} episodes each of at most {plan.longest} steps "
        f"({plan.horizon} while learning in the generated world). "
        "Brackets are 95% intervals. Alarm: the whole interval of the gap is above 0."
    )
    (out / "report.md").write_text("\n".join(lines) + "\n")
    raw = {
        name: {place: [asdict(r) for r in found] for place, found in places.items()} for name, places in done.items()
    }
    (out / "report.json").write_text(json.dumps({"plan": asdict(plan), "results": raw}, indent=1))
    plot(done, out / "transfer.png")


def plot(results: dict[str, dict[str, list[Result]]], path: Path) -> None:
    """Bars of mean returns in both worlds, with 95% intervals."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for offset, place in ((-0.2, "generated"), (0.2, "real")):
        found = [pooled(places[place]) for places in results.values()]
        means = np.array([mean for mean, *_ in found])
        ends = np.array([[mean - low, high - mean] for mean, low, high in found]).T
        axes.bar(np.arange(len(found)) + offset, means, 0.38, yerr=ends.clip(min=0), capsize=4, label=f"{place} world")
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel("return of an episode")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder of train.world")
    parser.add_argument("--recording", required=True, help="folder of train.record that it was trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100_000, help="of training, in either world")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=50, help="of each test")
    parser.add_argument("--longest", type=int, default=500, help="steps of an episode at most")
    parser.add_argument("--worlds", type=int, default=16, help="at once")
    parser.add_argument(
        "--horizon", type=int, default=20, help="steps of an episode of learning in the generated world"
    )
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    for name in ("model", "recording"):
        if not Path(given[name]).is_dir():
            parser.exit(2, f"{parser.prog}: --{name} {given[name]}: no such folder\n")
    try:
        run(Plan(**given), out)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print((out / "report.md").read_text())


if __name__ == "__main__":
    main()

"""Is an agent that was trained in a generated world good in the real one? Trains in both, tests in both:

    python -m agents.transfer --model runs/takecover --recording data/takecover --steps 100000 --seeds 3 --out runs/transfer
    python -m agents.transfer --model street --reward beacon --real YumeStreetBeacon-v0 --agents random scripted --out runs/beacon

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

from agents.evaluate import RESAMPLES, Result, evaluate
from agents.planner import Settings as PlannerSettings
from agents.planner import add_planner, planner_settings
from agents.ppo import Settings, add_actions, learn
from agents.worlds import Where
from train.generator.measures import Interval, mean_interval

# what is compared: name in --agents -> what the report calls it
AGENTS = {
    "random": "random",
    "scripted": "scripted",
    "generated": "PPO in the generated world",
    "real": "PPO in the real world",
    "planner": "planner in the generated world",
}
PLACES = ("generated", "real")
LEARNING = ("rollout", "batch", "epochs", "lr", "gamma", "entropy")  # settings of PPO that are options here, too
Found = dict[str, dict[str, list[Result]]]  # by name in --agents and place, one of each seed


@dataclass(frozen=True)
class Plan:
    """What is compared. Episodes end after `longest` steps in both worlds; while an agent learns in the generated one, after
    `horizon` steps already: errors of a model add up, and an agent learns to exploit them (MBPO, arXiv 1906.08253). While one
    learns in the real world they end after `real_horizon` steps, or `longest`. The planner is slow: it plays `planner_episodes`
    with the first seed only. `generated_episodes`: of each test in the generated world, or `episodes`. `learning`: settings of PPO
    but for steps, worlds and seed; all but the scripted agent choose among its actions. `planner`: but for the seed."""

    generated: Where
    real: Where
    agents: tuple[str, ...] = ("random", "generated", "real")
    steps: int = 100_000
    seeds: int = 3
    episodes: int = 50
    longest: int = 500
    worlds: int = 16
    horizon: int = 20
    real_horizon: int | None = None
    planner_episodes: int = 20
    generated_episodes: int | None = None
    learning: Settings = Settings()
    planner: PlannerSettings = PlannerSettings()

    def where(self, place: str) -> Where:
        return replace(self.generated if place == "generated" else self.real, longest=self.longest)

    def tests(self, place: str) -> int:
        """Episodes of a test of one agent and seed."""
        fewer = self.generated_episodes if place == "generated" else None
        return self.episodes if fewer is None else fewer


@dataclass(frozen=True)
class Row:
    """One agent: mean return in either world and their difference, and the share of episodes that reached their goal, each with
    its 95% interval."""

    name: str
    generated: Interval
    real: Interval
    gap: Interval
    goals: tuple[Interval, Interval]  # generated, real

    @classmethod
    def of(cls, name: str, places: dict[str, list[Result]]) -> Row:
        made, real = (pooled([result.returns for result in places[place]]) for place in PLACES)
        goals = [pooled([np.array(result.goals, float) for result in places[place]]) for place in PLACES]
        below, above = np.hypot(made[0] - made[1], real[2] - real[0]), np.hypot(made[2] - made[0], real[0] - real[1])
        gap = made[0] - real[0]
        return cls(name, made, real, (gap, float(gap - below), float(gap + above)), (goals[0], goals[1]))

    @property
    def alarm(self) -> bool:
        """Whether the whole interval of the gap is above 0."""
        return self.gap[1] > 0

    def __str__(self) -> str:
        values = [f"{value:.3g} ({low:.3g} to {high:.3g})" for value, low, high in (self.generated, self.real)]
        shares = [f"{value:.0%} ({low:.0%} to {high:.0%})" for value, low, high in self.goals]
        gap = f"{self.gap[0]:+.3g} ({self.gap[1]:.3g} to {self.gap[2]:.3g})"
        return f"| {' | '.join([self.name, *values, gap, 'yes' if self.alarm else 'no', *shares])} |"


def pooled(values: Sequence[Sequence[float] | np.ndarray]) -> Interval:
    """Mean of the values of all seeds and its 95% interval over episodes; with three seeds or more, seeds are drawn, too."""
    if len(values) < 3:
        return mean_interval(np.concatenate([np.asarray(part, float) for part in values]), RESAMPLES)
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES // 10):
        drawn = [np.asarray(values[i], float) for i in rng.integers(len(values), size=len(values))]
        means.append(np.mean([part[rng.integers(len(part), size=len(part))].mean() for part in drawn]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([np.mean(part) for part in values])), float(low), float(high)


def run(plan: Plan, out: Path) -> Found:
    """Results of all agents. What was measured before is read from `out`, and the report is written after each."""
    results: Found = {name: {place: [] for place in PLACES} for name in plan.agents}
    for name in plan.agents:
        for seed in range(1 if name == "planner" else plan.seeds):
            agent = _agent(plan, name, seed, out)
            for place in PLACES:
                file = out / "results" / f"{name}-{seed}-{place}.json"
                results[name][place].append(measured(file, agent, place, plan, seed))
                write(plan, results, out)
    return results


def _agent(plan: Plan, name: str, seed: int, out: Path) -> str:
    """What `evaluate` calls an agent; those that learn are trained first."""
    if name in PLACES:
        horizon = plan.horizon if name == "generated" else plan.real_horizon or plan.longest
        where = replace(plan.where(name), longest=horizon)
        folder = out / f"{name}-{seed}"
        learn(where, replace(plan.learning, steps=plan.steps, worlds=plan.worlds, seed=seed), folder)
        return str(folder)
    if name == "planner":
        reward = plan.generated.arguments.get("reward")
        return f"planner:{plan.generated.arguments['model']}" + (f"@{reward}" if reward else "")
    return name


def measured(file: Path, agent: str, place: str, plan: Plan, seed: int) -> Result:
    """The result in `file`, measured now if it is not there."""
    if not file.is_file():
        episodes = plan.planner_episodes if agent.startswith("planner:") else plan.tests(place)
        how = (plan.worlds, 10_000 + seed, plan.learning.actions, plan.planner)
        result = evaluate(agent, plan.where(place), episodes, *how)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(result)))
    kept = json.loads(file.read_text())
    return Result(tuple(kept["returns"]), tuple(kept["lengths"]), tuple(kept["goals"]))


def write(plan: Plan, results: Found, out: Path) -> None:
    """report.json, report.md and transfer.png of the agents that were measured in both worlds."""
    done = {name: places for name, places in results.items() if all(places.values())}
    if not done:
        return
    how = plan.planner
    rows = [Row.of(AGENTS[name], places) for name, places in done.items()]
    seeds = max(len(places["real"]) for places in done.values())
    lines = [
        "| agent | generated world | real world | gap | alarm | goal, generated | goal, real |",
        "|---|---|---|---|---|---|---|",
        *map(str, rows),
        f"\n{plan.steps} steps of training, {seeds} seeds, {plan.tests('generated')} episodes each in the generated world and "
        f"{plan.episodes} in the real one, of at most {plan.longest} steps "
        f"({plan.horizon} while learning in the generated world, {plan.real_horizon or plan.longest} in the real one)"
        + (f"; the planner {plan.planner_episodes} episodes, one seed, {_said(how)}" if "planner" in done else "")
        + ". Brackets are 95% intervals. Alarm: the whole interval of the gap is above 0. Goal: the share of episodes that ended "
        "with a positive reward, not by their limit.",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text("\n".join(lines) + "\n")
    raw = {
        name: {place: [asdict(r) for r in found] for place, found in places.items()} for name, places in done.items()
    }
    (out / "report.json").write_text(json.dumps({"plan": asdict(plan), "results": raw}, indent=1))
    plot(rows, out / "transfer.png")


def _said(how: PlannerSettings) -> str:
    return (
        f"{how.candidates} candidates of {how.horizon} steps, {how.rounds} rounds, {how.commit} steps of a plan taken"
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of mean returns and of shares of goals in both worlds, with 95% intervals."""
    figure, panels = plt.subplots(2, 1, figsize=(2 + 1.8 * len(rows), 5.5), layout="constrained", sharex=True)
    for number, (offset, place) in enumerate(zip((-0.2, 0.2), PLACES)):
        for axes, found in zip(panels, (np.array([getattr(row, place) for row in rows]), _goals(rows, number))):
            ends = np.abs(found[:, 1:] - found[:, :1]).T
            bars = np.arange(len(rows)) + offset
            axes.bar(bars, found[:, 0], 0.38, yerr=np.nan_to_num(ends), capsize=4, label=f"{place} world")
    panels[1].set_xticks(range(len(rows)), [row.name.replace(" in the", "\nin the") for row in rows])
    panels[0].set_ylabel("return of an episode")
    panels[1].set_ylabel("episodes that reached the goal")
    panels[1].set_ylim(0, 1)
    panels[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _goals(rows: Sequence[Row], number: int) -> np.ndarray:
    return np.array([row.goals[number] for row in rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder of train.world, or a name")
    parser.add_argument("--reward", help="of the generated world; its own if not given")
    parser.add_argument(
        "--arguments", type=json.loads, default={}, help="""more of the generated world's, '{"steps": 2}'"""
    )
    real = parser.add_mutually_exclusive_group(required=True)
    real.add_argument(
        "--recording", help="folder of train.record that the model was trained on: the real world is what it recorded"
    )
    real.add_argument("--real", metavar="ENV", help="id of the real environment")
    parser.add_argument("--agents", nargs="+", choices=tuple(AGENTS), default=list(Plan.agents))
    add_actions(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Plan.steps, help="of training, in either world")
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--episodes", type=int, default=Plan.episodes, help="of each test")
    parser.add_argument("--generated-episodes", type=int, help="of each test in the generated world (default: as many)")
    parser.add_argument("--longest", type=int, default=Plan.longest, help="steps of an episode at most")
    parser.add_argument("--worlds", type=int, default=Plan.worlds, help="at once")
    parser.add_argument(
        "--horizon", type=int, default=Plan.horizon, help="the same while learning in the generated world"
    )
    parser.add_argument("--planner-episodes", type=int, default=Plan.planner_episodes, help="it is slow")
    parser.add_argument("--real-horizon", type=int, help="the same in the real world (default: --longest)")
    add_planner(parser)
    for name in LEARNING:
        default = getattr(Settings(), name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"of agents.ppo (default {default})")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = vars(parser.parse_args(argv))
    out, model, reward, recording, real = (given.pop(name) for name in ("out", "model", "reward", "recording", "real"))
    arguments = given.pop("arguments") | {"model": model} | ({"reward": reward} if reward else {})
    if recording is not None:
        for name, folder in (("model", model), ("recording", recording)):
            if not Path(folder).is_dir():
                parser.exit(2, f"{parser.prog}: --{name} {folder}: no such folder\n")
    generated = Where(arguments=arguments)
    truth = Where(recording=recording) if recording is not None else Where(env=real)
    given["agents"] = tuple(given["agents"])
    given["learning"] = Settings(actions=tuple(given.pop("actions")), **{name: given.pop(name) for name in LEARNING})
    try:
        given["planner"] = planner_settings(given)
        run(Plan(generated, truth, **given), out)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print((out / "report.md").read_text())


if __name__ == "__main__":
    main()

"""Worlds in several processes: none hangs, none takes the cores of the others, and all end with Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from world_model.threads import CoreMonitor, count_other_running_threads, fair_threads, is_worker
from yume_gym.env import YumeWorldEnv

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")


def program(text: str, *arguments: object, **more: str) -> subprocess.Popen:
    """A Python program in a process group of its own, which may use two threads."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | more
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


def output_of(running: subprocess.Popen, seconds: float = 120) -> str:
    try:
        out, errors = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {running.communicate()}") from None
    assert running.returncode == 0, errors
    return out


DREAMT_BEFORE = """
    import sys
    import gymnasium, torch, yume_gym
    from gymnasium.vector import AsyncVectorEnv
    from yume_gym.env import YumeWorldEnv

    if __name__ == "__main__":
        torch.set_num_threads(2)
        make = lambda: gymnasium.make("YumeWorld-v0", model=sys.argv[1], device="cpu")
        torch.nn.Conv2d(16, 32, 3)(torch.randn(4, 16, 64, 64)).sum()  # OpenMP's helpers begin
        (torch.randn(600, 600) @ torch.randn(600, 600)).sum()
        env = make()
        env.reset(seed=0)
        env.step(0)
        envs = AsyncVectorEnv([make, make], context="fork", shared_memory=False)
        envs.reset(seed=1)
        print(envs.step([1, 2])[0].shape[0], torch.get_num_threads())
        envs.close()
"""


def test_forked_workers_of_a_process_that_has_dreamt_do_not_hang(weights_folder):
    assert output_of(program(DREAMT_BEFORE, weights_folder)).split() == ["2", "2"]


FORK = """
    import os, torch, world_model.threads
    torch.set_num_threads(2)
    (torch.randn(600, 600) @ torch.randn(600, 600)).relu().sum()
    child = os.fork()
    if not child:
        (torch.randn(600, 600) @ torch.randn(600, 600)).relu().sum()
        os._exit(10 + torch.get_num_threads())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


def test_a_forked_child_computes_with_one_thread_and_its_parent_as_before():
    assert output_of(program(FORK)).split() == ["11", "2"]


SPAWNED = """
    import multiprocessing, sys

    def work(answers):
        import torch
        from world_model.threads import fair_threads
        torch.set_num_threads(2)
        with fair_threads(torch.device("cpu")) as number:
            answers.put(number if number == torch.get_num_threads() else -1)

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        answers = context.Queue()
        workers = [context.Process(target=work, args=(answers,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        print(*[answers.get() for _ in workers])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_compute_with_one_thread(tmp_path, method):
    (tmp_path / "spawned.py").write_text(textwrap.dedent(SPAWNED))
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    running = program(run, tmp_path / "spawned.py", method, PYTHONPATH=str(ROOT))
    assert output_of(running).split() == ["1", "1"]


def test_a_worker_is_told_otherwise_in_the_environment(monkeypatch):
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "a parent")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert is_worker()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not is_worker()


STEPPING = """
    import signal, sys
    import gymnasium, yume_gym

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    if __name__ == "__main__":
        make = lambda: gymnasium.make("YumeWorld-v0", model=sys.argv[1], device="cpu")
        envs = gymnasium.vector.AsyncVectorEnv([make, make], context="fork")
        envs.reset(seed=0)
        print("stepping", flush=True)
        while True:
            envs.step([1, 2])
"""


def in_group(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, leader = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(leader) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_ctrl_c_ends_all_workers(weights_folder):
    running = program(STEPPING, weights_folder)
    assert running.stdout is not None
    assert running.stdout.readline() == "stepping\n"
    assert len(in_group(running.pid)) >= 3
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    try:
        running.communicate(timeout=120)
        until = time.monotonic() + 60
        while in_group(running.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert in_group(running.pid) == []
    finally:
        if in_group(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode != 0


@pytest.mark.parametrize(
    ("busy", "wanted", "threads"),
    [([0], 2, 2), ([1], 2, 2), ([3], 2, 1), ([9], 2, 1), ([2], 8, 2), ([0], 1, 1), ([3, 0, 0], 4, 1)],
)
def test_cores_that_others_keep_busy_are_left_to_them(busy, wanted, threads):
    polls = iter([*busy, *busy[-1:] * 9])
    monitor = CoreMonitor(lambda: next(polls), cores=4, rate=1e9)
    assert monitor.threads(wanted) == threads
    assert [monitor.threads(4) for _ in range(3)][-1] == max(1, 4 - busy[-1])


def test_polls_are_few_and_threads_are_given_back(monkeypatch):
    polls: list[int] = []
    before = torch.get_num_threads()
    monitor = CoreMonitor(lambda: polls.append(1) or 1, cores=2, rate=0.001)
    try:
        torch.set_num_threads(2)
        for _ in range(5):
            with pytest.raises(KeyError), fair_threads(torch.device("cpu"), monitor) as number:
                assert (number, torch.get_num_threads()) == (1, 1)
                raise KeyError
            assert torch.get_num_threads() == 2
        with fair_threads(torch.device("meta"), monitor) as number:
            assert number == 2
    finally:
        torch.set_num_threads(before)
    assert polls == [1]


def test_a_busy_neighbour_is_seen():
    with_none = min(count_other_running_threads() for _ in range(20))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.5)
        assert max(count_other_running_threads() for _ in range(20)) >= min(with_none, 50) + 2
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_an_environment_shows_the_same_next_to_busy_neighbours(world_model, monkeypatch):
    """But for rounding: on some processors fewer threads add up in another order."""
    env = YumeWorldEnv(world_model)
    before, frames = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for busy in (0, 5):
            monkeypatch.setattr("world_model.threads.CORE_MONITOR._look", lambda busy=busy: busy)
            monkeypatch.setattr("world_model.threads.CORE_MONITOR._next", 0.0)
            env.reset(seed=0)
            frames.append([env.step(held)[0] for held in (1, 10)])
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    alone, beside = np.asarray(frames).astype(int)
    assert np.abs(alone - beside).max() <= 1 and (alone == beside).mean() > 0.99


def test_gymnasiums_wrappers_find_what_they_need(world_model, tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("cv2")
    env = gym.wrappers.RecordVideo(
        YumeWorldEnv(world_model, render_mode="rgb_array"), str(tmp_path), disable_logger=True
    )
    small = gym.wrappers.ResizeObservation(env, (20, 30))
    assert small.reset(seed=0)[0].shape == (20, 30, 3)
    small.step(0)
    small.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]

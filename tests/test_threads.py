"""Who computes with how many threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from world_model.threads import set_threads, single_thread

_PROGRAM = """
import os
import torch
from world_model.model import WorldModel
from yume_gym.play.start import Start, prepare

torch.set_num_threads(2)
torch.ones(8).sum()  # whatever torch starts for itself
before = len(os.listdir("/proc/self/task"))
model = WorldModel.load("street", device="cpu", dtype="float32")
prepare(model, Start(seed=3))
prepare(model, Start(image=model.starting_image(1)[:, ::-1].copy()))
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
model.start([model.starting_image(0)], [None], [0])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_one_thread_gives_back_the_number_even_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), single_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_thread_keeps_its_number_whatever_others_set_meanwhile() -> None:
    before, seen = torch.get_num_threads(), []

    def work() -> None:
        set_threads(3)
        with ThreadPoolExecutor(1) as other:
            other.submit(torch.set_num_threads, 1).result()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert seen == [3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the threads of /proc")
def test_loading_and_preparing_leave_no_computing_threads_behind() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    threads, left, dreamt = (int(word) for word in done.stdout.split())
    assert (threads, left) == (2, 0)
    assert dreamt > 0  # the count does see computing threads

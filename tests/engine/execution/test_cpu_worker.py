"""The CPU as a place where experts compute: in order, with as many threads as asked for, and errors are told."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.execution.cpu_worker import HostWorker  # noqa: E402
from tests.paths import ROOT  # noqa: E402


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("spmoe-host")]


def test_results_come_in_the_order_asked_for() -> None:
    with HostWorker() as host:
        outputs = [host.compute(3, expert, lambda expert=expert: torch.tensor([expert])) for expert in (5, 2, 7)]
        results = [host.wait() for _ in outputs]
        assert [(each.layer, each.expert) for each in results] == [(3, 5), (3, 2), (3, 7)]
        assert [int(each.result()) for each in outputs] == [5, 2, 7]
        times = [time for each in results for time in (each.started_ns, each.ended_ns)]
        assert times == sorted(times) and times[0] >= 0
        assert host.outstanding == 0
    assert running() == []


def test_tells_only_what_is_finished_and_no_more_than_asked() -> None:
    gate = threading.Event()

    def held() -> torch.Tensor:
        gate.wait()
        return torch.zeros(())

    with HostWorker() as host:
        host.compute(0, 0, lambda: torch.zeros(())).result()
        host.compute(0, 1, lambda: torch.zeros(())).result()
        host.compute(0, 2, held)
        assert [each.expert for each in host.finished(1)] == [0]
        assert host.wait().expert == 1
        assert host.finished() == [] and host.outstanding == 1
        gate.set()
        assert host.wait().expert == 2
        with pytest.raises(RuntimeError, match="nothing to compute"):
            host.wait()


@pytest.mark.parametrize("ask", ["wait", "finished"])
def test_an_error_reaches_who_asks(ask: str) -> None:
    def fails() -> torch.Tensor:
        raise ArithmeticError("no such number")

    with HostWorker() as host:
        future = host.compute(0, 0, fails)
        assert isinstance(future.exception(), ArithmeticError)
        with pytest.raises(ArithmeticError, match="no such number"):
            getattr(host, ask)()
        host.compute(0, 1, lambda: torch.zeros(()))
        assert host.wait().expert == 1  # The thread lives on.
    assert running() == []


def test_close_drops_what_has_not_begun_and_may_be_called_twice() -> None:
    gate, begun = threading.Event(), threading.Event()

    def held() -> torch.Tensor:
        begun.set()
        gate.wait()
        return torch.zeros(())

    host = HostWorker()
    host.compute(0, 0, held)
    dropped = host.compute(0, 1, lambda: torch.zeros(()))
    begun.wait()
    threading.Timer(0.01, gate.set).start()
    host.close()
    host.close()
    assert dropped.cancelled()
    assert running() == []
    with pytest.raises(RuntimeError):
        host.compute(0, 2, lambda: torch.zeros(()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to count threads in")
def test_computes_with_as_many_threads_as_the_rest() -> None:
    """A thread of its own has its own number of them, which is that of the machine's cores unless it is told."""
    program = (
        "import os, torch; from engine.execution.cpu_worker import HostWorker\n"
        "torch.set_num_threads(1)\n"
        "states, weights = torch.randn(64, 256), torch.randn(512, 256)\n"
        "with HostWorker() as host:\n"
        "    before = len(os.listdir('/proc/self/task'))\n"
        "    host.compute(0, 0, lambda: torch.nn.functional.linear(states, weights)).result()\n"
        "    print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1"], "the worker alone"

"""One thread, so that sums come in one order; Triton's interpreter where no GPU is; and no way out of the machine."""

from __future__ import annotations

import importlib.util
import os
import socket

import pytest

if importlib.util.find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # Before anything imports Triton.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""

    def refuse(*_args: object) -> None:
        pytest.fail("something tried to leave the machine")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

"""One thread for PyTorch and numpy, here and in all processes that tests start: workers already use every core."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before anything imports torch.

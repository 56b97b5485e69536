"""`python -m engine verify-log`: repeats the decisions of a log with a fresh scheduler."""

from __future__ import annotations

import argparse

from spmoe.policy.parts.future import Future
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import verify_log
from spmoe.trace.reader import TraceFile
from spmoe.trace.windows import requests


def verify(options: argparse.Namespace) -> None:
    """Repeat a log's decisions and say whether they are the same; InputError where they are not."""
    if options.earlier is None:
        verified = verify_log(options.log)
    else:
        trace = TraceFile(options.earlier, ())

        def future(config: SchedulerConfig) -> Future:
            return Future(lambda: requests(trace), config.gamma)

        verified = verify_log(options.log, future)
    print(f"{options.log}: the same commands for all {verified.events:,} events, under {verified.recipe}")

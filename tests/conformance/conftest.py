"""Every conformance test runs against every driver."""

from __future__ import annotations

import pytest

from tests.conformance.drivers import DRIVERS, Drive

pytest.register_assert_rewrite("tests.conformance.checker", "tests.conformance.scripted")


@pytest.fixture(scope="session", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Drive:
    if request.param == "engine":
        pytest.importorskip("torch", reason="the engine needs torch")
    return DRIVERS[request.param]

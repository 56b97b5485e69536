"""Every conformance test runs against every driver."""

from __future__ import annotations

import pytest

from tests.conformance.drivers import DRIVERS, Drive

pytest.register_assert_rewrite("tests.conformance.checker")


@pytest.fixture(scope="session", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Drive:
    return DRIVERS[request.param]

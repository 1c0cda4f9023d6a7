"""What a test does when a component of the machine is missing: one rule for the whole suite.

On a developer's laptop such a test is skipped, with the reason in the report. Where everything is supposed to be
installed, ``PORTBOOK_TEST_REQUIRE_ALL=1`` turns the same skip into a failure, so that a test which never ran
cannot pass for one that did.
"""

from __future__ import annotations

import os

import pytest

REQUIRE_ALL = "PORTBOOK_TEST_REQUIRE_ALL"


def need(condition: bool, what: str) -> None:
    """Go on if ``condition`` holds; otherwise skip, or fail where everything is required, saying ``what`` is needed."""
    if condition:
        return
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"needs {what}, and {REQUIRE_ALL}=1 forbids skipping", pytrace=False)
    pytest.skip(f"needs {what}")

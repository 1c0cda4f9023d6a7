from __future__ import annotations

import pytest

from tests.components import REQUIRE_ALL, need


def test_what_is_there_changes_nothing():
    need(True, "air")


def test_a_missing_component_skips_with_its_name(monkeypatch):
    monkeypatch.delenv(REQUIRE_ALL, raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs podman"):
        need(False, "podman")


def test_where_all_is_required_it_fails(monkeypatch):
    monkeypatch.setenv(REQUIRE_ALL, "1")
    with pytest.raises(pytest.fail.Exception, match="needs podman"):
        need(False, "podman")

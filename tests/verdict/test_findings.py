"""The codes of findings and their page."""

from __future__ import annotations

import re
from pathlib import Path

from portbook.verdict.findings import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "why.md").read_text()


def test_the_index_links_each_code_to_its_example():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| \[(.*)\]\(#([a-z0-9-]+)\) \|", PAGE, re.MULTILINE)
    assert [(code, meaning) for code, meaning, _ in rows] == list(CODES.items())
    assert all(code == anchor for code, _, anchor in rows)


def test_each_code_has_an_example_that_contains_it():
    chapters = dict(re.findall(r"^### ([a-z0-9-]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert set(chapters) == set(CODES)
    for code, text in chapters.items():
        assert re.search(rf"^  (blocks|shadows|warns) +{code}\b", text, re.MULTILINE), code

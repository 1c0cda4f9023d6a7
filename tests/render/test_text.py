"""Lines that fit a terminal."""

from __future__ import annotations

from time import thread_time

from hypothesis import given
from hypothesis import strategies as st

from portbook.render.text import Column, Style, cell_count, note, table, wrap

TITLE = "  listens on  "
ROW = "[::]:39663/tcp and IPv4 LISTEN, reach: every network, accept queue 0 of 128"


def test_a_row_is_continued_below_its_text():
    assert wrap(ROW, Style(80), TITLE, " " * 14) == [
        "  listens on  [::]:39663/tcp and IPv4 LISTEN, reach: every network, accept queue",
        "              0 of 128",
    ]


def test_without_a_width_a_line_stays_whole():
    assert wrap(ROW, Style(None), TITLE, " ") == [TITLE + ROW]
    assert wrap(ROW, Style(200), TITLE, " ") == [TITLE + ROW]


def test_a_word_longer_than_a_line_stays_whole():
    path = "/" + "x" * 100
    assert wrap(f"{path} -m", Style(80), "  command     ", " " * 14) == [f"  command     {path}", " " * 14 + "-m"]


WORDS = st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12), min_size=1, max_size=40)


@given(WORDS, st.integers(20, 100))
def test_every_line_fits_and_no_word_is_lost(words, width):
    lines = wrap(" ".join(words), Style(width), "  ", "    ")
    assert " ".join(lines).split() == words
    for line in lines:
        assert cell_count(line) <= width or len(line.split()) == 1


def test_a_long_text_of_wide_characters_takes_no_time_to_be_cut():
    """A command line may have megabytes; what is not linear takes hours for it."""
    began = thread_time()
    (_, row) = table([Column("COMMAND", 1)], [["漢" * 500_000]], Style(80))
    assert cell_count(row) == 79
    assert thread_time() - began < 5


def test_a_message_with_a_word_of_megabytes_does_not_scroll_the_screen_away():
    """Such as a word of a file of targets, which somebody else has written."""
    text = note(f"target {chr(0) * 2_000_000} is not an address; write 10.0.0.1")
    assert len(text) < 10_000
    assert text.startswith(r"portbook: target \x00\x00")
    assert text.endswith("is not an address; write 10.0.0.1\n")

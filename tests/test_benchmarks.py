"""What the benchmarks judge by: a benchmark that misreads an answer, or loses another's page, is worse than none."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import need

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_each_program_writes_its_own_part_of_the_page(tmp_path):
    import contest

    page = tmp_path / "page.md"
    shutil.copy(ROOT / "docs/benchmarks.md", page)
    before = page.read_text()
    contest.write(str(page), "reach.py", ["of reach"])
    contest.write(str(page), "register.py", ["of register"])
    contest.write(str(page), "reach.py", ["of reach, again"])
    text = page.read_text()
    begin, end = contest.markers("register.py")
    assert text.count("of register") == text.count("of reach, again") == 1
    assert "of reach\n" not in text
    assert text.partition(begin)[0] == before.partition(begin)[0]
    assert text.rpartition(end)[2] == before.rpartition(end)[2]


def test_the_chart_shows_the_figures_of_the_page():
    import chart

    page = (ROOT / "docs/benchmarks.md").read_text()
    assert chart.draw(page) == (ROOT / "docs/benchmarks.svg").read_text(), "run: python benchmarks/chart.py"
    median = chart.median_ms(page, "large: 25 processes, 100,000 sockets", "ss -tunap")
    changed = page.replace(f"| {median:,.0f} ms |", "| 1,234 ms |")
    assert ">1,234 ms, " in chart.draw(changed)
    with pytest.raises(ValueError, match="no row"):
        chart.median_ms(page, "large: 25 processes, 100,000 sockets", "netstat")


def test_nmap_and_portbook_are_read_alike(tmp_path):
    need(shutil.which("nmap") is not None, "nmap")
    import answers

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        opened = listener.getsockname()[1]
        first = min(opened, 65_500)
        ports = f"{first}-{first + 35}"
        commands = {
            "nmap": ["nmap", "-sT", "-Pn", "-n", "-p", ports, "-oX", "{}", "127.0.0.1"],
            "portbook": [sys.executable, "-m", "portbook", "scan", "127.0.0.1", "-p", ports, "--nmap-xml", "{}"],
        }
        said = {}
        for name, command in commands.items():
            file = tmp_path / name
            printed = subprocess.run(
                [word.format(file) for word in command], check=True, capture_output=True, text=True, timeout=60
            ).stdout
            said[name] = answers.of_xml(file.read_text(), "")
            assert answers.of_table(printed, "127.0.0.1").keys() >= {("127.0.0.1", opened)}
    assert said["nmap"].keys() == said["portbook"].keys() == {("127.0.0.1", first + i) for i in range(36)}
    assert said["nmap"]["127.0.0.1", opened] == said["portbook"]["127.0.0.1", opened] == "open"
    assert "closed" in said["portbook"].values()


def test_a_score_counts_what_was_found_missed_imagined_and_misnamed():
    import answers

    truth = {("a", 1): "open", ("a", 2): "open", ("a", 3): "closed", ("a", 4): "filtered", ("a", 5): "closed"}
    said = {("a", 1): "open", ("a", 2): "closed", ("a", 3): "open", ("a", 4): "closed", ("b", 1): "open"}
    score = answers.compare(said, truth)
    assert score == (1, 1, 2, 2)  # a4 is misnamed, a5 not answered; a3 and b1 are imagined
    assert not score.is_right
    assert answers.compare(truth, truth) == (2, 0, 0, 0)

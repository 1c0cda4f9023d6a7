"""The answers of a scanner, in one form for all scanners, and how they compare with what was set up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree

Place = tuple[str, int]  # address and port
States = dict[Place, str]  # in nmap's words

OPEN_LINE = re.compile(r"^\s*(\d+)(?:/tcp)?\s+(?:tcp\s+)?open\s", re.MULTILINE)


class Score(NamedTuple):
    """One run: open ports that were found, those that were not, what was called open and is not, and the rest."""

    found: int
    missed: int
    false: int
    wrong: int  # other answers that differ from what was set up

    @property
    def is_right(self) -> bool:
        return not (self.missed or self.false or self.wrong)


def compare(states: States, truth: States) -> Score:
    """``truth`` names what is to be answered; what it does not name may have any answer but open."""
    opened = {place for place, state in truth.items() if state == "open"}
    said = {place for place, state in states.items() if state == "open"}
    wrong = sum(states.get(place) != state for place, state in truth.items() if place not in opened | said)
    return Score(len(opened & said), len(opened - said), len(said - opened), wrong)


def of_table(text: str, address: str) -> States:
    """The open ports in the table that portbook and nmap print for people."""
    return {(address, int(port)): "open" for port in OPEN_LINE.findall(text)}


def of_xml(text: str, address: str) -> States:
    """nmap's XML: ports, and those that it groups because they are alike."""
    states: States = {}
    for host in ElementTree.fromstring(text).iter("host"):
        (where,) = [a.get("addr", "") for a in host.iter("address") if a.get("addrtype") != "mac"]
        for port in host.iter("port"):
            state = port.find("state")
            states[where, int(port.get("portid", "0"))] = "" if state is None else state.get("state", "")
        for extra in host.iter("extraports"):
            states |= {(where, port): extra.get("state", "") for port in _grouped(extra)}
    return states


def _grouped(extra: ElementTree.Element) -> Iterator[int]:
    for reasons in extra.iter("extrareasons"):
        for part in reasons.get("ports", "").split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)


Reader = Callable[[str, str], States]

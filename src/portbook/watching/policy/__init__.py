"""Policies: which ports may be held, by whom, and which must be. TOML text to rules; pure, but for ``read``.

>>> from portbook.watching.policy import parse
>>> policy = parse('''
... version = 1
... [[allow]]
... port = 22
... exe = "/usr/sbin/sshd"
... ''')
>>> [rule.label for rule in policy.rules]
['allow[1] (policy.toml:3)']

``portbook.watching.judge.judge`` says what a policy makes of a socket; docs/policy.md describes the file.
"""

from portbook.watching.policy.file import default_path, read
from portbook.watching.policy.records import Policy, PolicyRule, Problem, Selector
from portbook.watching.policy.text import parse

__all__ = ["Policy", "PolicyRule", "Problem", "Selector", "default_path", "parse", "read"]

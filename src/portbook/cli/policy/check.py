"""``portbook policy check``: whether what listens now is allowed, and what must listen does."""

from __future__ import annotations

import sys

from portbook.cli import base, exits, output
from portbook.cli.policy import files

FORMATS = {
    "json": "one JSON object",
    "sarif": "SARIF 2.1.0, for programs that collect findings",
    "junit": "JUnit XML, for build servers",
}
VIOLATED = 4


def _formats(command: base.Decorated) -> base.Decorated:
    for name, text in reversed(FORMATS.items()):
        command = base.option(f"--{name}", "form", flag_value=name, default=None, help=text)(command)
    return command


@base.command("check")
@files.file_argument
@files.policy_option
@base.option("-a", "--all", "every", is_flag=True, help="show what is allowed, too")
@_formats
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@output.strict_option
def command(file: str | None, path: str | None, every: bool, form: str | None, source: str | None, strict: bool) -> int:
    """Judge what listens now.

    Every TCP socket that listens or is bound, and every unconnected UDP socket, is allowed, a violation, or undecided
    because something could not be known. On Linux, root sees those of every network namespace. The exit code is 0 if
    nothing violates the policy, 4 if something does or a requirement is not met, 2 if the policy is not valid, and 5
    if it could not be found out.

    \b
    Examples:
      portbook policy check
      portbook policy check policy.toml --all
      portbook policy check policy.toml --sarif > findings.sarif
    """
    policy = files.read(file, path)

    from portbook.render import policy as render
    from portbook.watching import assessment

    report = assessment.check(policy, source=source)
    if form is not None:
        output.write_bytes(render.FORMATS[form](report))
    else:
        from portbook.render.text import style_of

        sys.stdout.write("".join(f"{line}\n" for line in render.lines(report, style_of(sys.stdout), every)))
        sys.stdout.flush()
        output.write_gaps(report.gaps)
    if not report.passed:
        return VIOLATED
    return exits.GAPS if strict and report.gaps else exits.YES

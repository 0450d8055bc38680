"""`ccsnet doctor`: one call, a line for each finding. Like `cli`, this module prints."""

from dataclasses import dataclass
from pathlib import Path

from ccsnet.arguments import parse, take
from ccsnet.errors import InputError

MARKS = {"good": "ok  ", "note": "-   ", "broken": "MEND"}


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Where to write it."""

    json: Path | None = None
    """Also write everything to this file."""


def doctor(arguments: list[str]) -> int:
    """See what this machine has, and what to mend: ccsnet doctor [--json FILE].

    Versions, devices, disks, optional packages, weights and data. What is broken has the command
    that mends it behind it, and the exit status is then 1. Nothing is changed, and nothing is asked
    of a network.
    """
    import json

    from ccsnet.doctor import examine
    from ccsnet.files import atomic_path

    if arguments and not arguments[0].startswith("-"):
        raise InputError(f"ccsnet doctor takes options alone, got {arguments[0]!r}.")
    file, arguments = take(arguments, "--json")
    if arguments:  # The parser of options may be what is missing, and is needed for help alone.
        parse(DoctorArguments, "doctor", arguments, description=doctor.__doc__)
    findings = examine()
    part = ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            print(f"\n{part}" if finding is not findings[0] else part)
        mend = f": {finding.mend}" if finding.mend else ""
        print(f"  {MARKS[finding.state]} {finding.what:22} {finding.found}{mend}")
    broken = sum(finding.state == "broken" for finding in findings)
    said = f"{broken} thing{'s' * (broken != 1)} to mend." if broken else "Nothing to mend."
    print(f"\n{said} Lines with - are optional.")
    if file is not None:
        with atomic_path(Path(file)) as aside:
            rows = [finding._asdict() for finding in findings]
            aside.write_text(json.dumps({"broken": broken, "findings": rows}, indent=2) + "\n")
    return 1 if broken else 0

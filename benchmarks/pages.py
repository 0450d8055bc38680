"""Put what benchmarks print into a page of the documentation.

    python -m benchmarks.pages docs/speed.md
    python -m benchmarks.pages docs/speed.md --only roofline train_step

A page has places for it, each with the command that fills it:

    <!-- made by `python -m benchmarks.roofline` -->
    <!-- end of what is made -->

Tables go in as they are, other output as a block of text; under it the commit and the machine. Run
it with nothing else running. What fails, or is not asked for, leaves its place as it was.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ccsnet.machine import machine

ROOT = Path(__file__).parent.parent
PLACE = re.compile(
    r"^(<!-- made by `([^`\n]+)` -->\n)(.*?)^(<!-- end of what is made -->)$",
    re.MULTILINE | re.DOTALL,
)


def filled(page: str, only: list[str], output_of: Callable[[str], str | None], note: str) -> str:
    """The page with what its commands print.

    Args:
        page: Markdown.
        only: Words of which a command must hold one; none: all commands.
        output_of: Runs a command; None of one that failed.
        note: Told below each output.
    """

    def fill(place: re.Match[str]) -> str:
        start, command, _, end = place.groups()
        if only and not any(word in command for word in only):
            return place[0]
        output = output_of(command)
        if output is None:
            return place[0]
        output = output.strip()
        if not re.search(r"^\|", output, re.MULTILINE):
            output = f"```text\n{output}\n```"
        else:  # Lines before and between tables are paragraphs of their own.
            output = re.sub(r"(?<=[^|\n])\n(?=[^\n])", "\n\n", output)
        return f"{start}\n{output}\n\n{note}\n\n{end}"

    return PLACE.sub(fill, page)


def output_of(command: str) -> str | None:
    """What a command prints, as it prints it; its errors go to the terminal."""
    print(f"$ {command}", flush=True)
    words = shlex.split(command)
    if words[0] == "python":
        words[0] = sys.executable
    ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(ended.stdout, flush=True)
    # Torch's profiler speaks to the output as well.
    said = re.sub(r"^USDT:.*\n", "", ended.stdout, flags=re.MULTILINE)
    return said if ended.returncode == 0 else None


def commit() -> str:
    """The checkout's, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Put what benchmarks print into a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="words of the commands to run")
    arguments = parser.parse_args()
    note = f"Commit {commit()}, {machine()}."
    page = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(filled(page, arguments.only, output_of, note), encoding="utf-8")


if __name__ == "__main__":
    main()

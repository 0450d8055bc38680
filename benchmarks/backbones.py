"""The page of backbones, docs/backbones.md: what they are, cost, and can be told to do.

    python -m benchmarks.backbones           # measures anew and writes the page
    python -m benchmarks.backbones --check   # is all but the times as the code has it?

Both take a few minutes.
"""

import argparse
import datetime
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from ccsnet.backbones.families import FAMILIES
from ccsnet.backbones.timm import create_backbone
from ccsnet.catalogue import BACKBONE_COLUMNS, SIDE, backbone_cells, machine, measure_backbone
from ccsnet.errors import InputError

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
START, END = "<!-- made by `python -m benchmarks.backbones` -->", "<!-- end of what is made -->"
TIME = list(BACKBONE_COLUMNS).index("s per image")


def builds(name: str, **settings: float) -> bool:
    """Whether a backbone takes settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "is skipped"
        try:
            create_backbone(name, **settings)  # pyright: ignore[reportArgumentType]
        except (InputError, UserWarning):
            return False
    return True


def checkpoints(name: str) -> bool:
    """Whether a backbone has gradient checkpointing."""
    try:
        create_backbone(name).set_grad_checkpointing()
    except InputError:
        return False
    return True


SETTINGS: dict[str, Callable[[str], bool]] = {
    "`drop_path`": lambda name: builds(name, drop_path=0.1),
    "`output_stride` 16 or 8": lambda name: builds(name, output_stride=8),
    "`grad_checkpointing`": checkpoints,
    "`layer_decay`": lambda name: create_backbone(name).layer_of is not None,
}


def rule(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def figures(passes: int) -> list[str]:
    """The table of all proven backbones, each timed so many times."""
    lines = rule(["family", *BACKBONE_COLUMNS])
    for family, names in FAMILIES.items():
        for name in names:
            cells = backbone_cells(name, measure_backbone(name, passes))
            lines.append(f"| {' | '.join([family, *cells])} |")
            print(lines[-1], file=sys.stderr)
    return lines


def settings() -> list[str]:
    """Which families have a setting, found out with the first backbone of each."""
    lines = rule(["family", *SETTINGS])
    for family, names in FAMILIES.items():
        cells = ["yes" if has(names[0]) else "-" for has in SETTINGS.values()]
        lines.append(f"| {' | '.join([family, *cells])} |")
    return lines


def made(passes: int = 3) -> list[str]:
    """All that stands between the markers."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    where = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, commit {commit}, {machine()}"
    return [
        START,
        "",
        *settings(),
        "",
        f"One image of {SIDE}x{SIDE}, float32, the median of three forward passes: {where}.",
        "",
        *figures(passes),
        "",
        END,
    ]


def between(text: str) -> list[str]:
    """The lines between the markers."""
    return text[text.index(START) : text.index(END) + len(END)].splitlines()


def without_times(lines: list[str]) -> list[str]:
    """What must be equal wherever and whenever the page is made: the rows, but for their times."""
    cells = [line.split(" | ") for line in lines if line.startswith("| ")]
    timed = len(BACKBONE_COLUMNS) + 1
    return [
        " | ".join(c for i, c in enumerate(row) if len(row) != timed or i != TIME + 1)
        for row in cells
    ]


def stale() -> list[str]:
    """Rows of the page that the code does not make, and rows that the page lacks."""
    page, now = (
        without_times(lines) for lines in (between(PAGE.read_text("utf-8")), made(passes=0))
    )
    return [f"- {row}" for row in page if row not in now] + [
        f"+ {row}" for row in now if row not in page
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The page of backbones.")
    parser.add_argument("--check", action="store_true", help="compare only, times left out")
    if parser.parse_args().check:
        rows = stale()
        print("\n".join(rows) or "docs/backbones.md is current.")
        sys.exit(bool(rows))
    text, lines = PAGE.read_text("utf-8"), "\n".join(made())
    pattern = f"{re.escape(START)}.*{re.escape(END)}"
    PAGE.write_text(re.sub(pattern, lambda _: lines, text, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()

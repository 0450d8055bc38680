"""`ccsnet runs`: an argument, one call, a table. Like `cli`, this module prints."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ccsnet.arguments import parse

if TYPE_CHECKING:
    from ccsnet.runs import RunSummary


SORTED_BY = {
    "name": "path",
    "dataset": "dataset",
    "backbone": "backbone",
    "head": "head",
    "steps": "step",
    "miou": "best_miou",
    "speed": "images_per_second",
    "hours": "hours",
    "state": "state",
}


@dataclass(frozen=True, kw_only=True)
class RunsArguments:
    """How to show them."""

    sort: Literal[
        "name", "dataset", "backbone", "head", "steps", "miou", "speed", "hours", "state"
    ] = "miou"
    """Texts from a to z, numbers from the largest."""
    json: Path | None = None
    """Also write them to this file, with all digits."""


def runs(arguments: list[str]) -> int:
    """Compare runs in a table: ccsnet runs [FOLDER] [--sort miou] [--json FILE].

    FOLDER is where runs lie, at any depth; without it, the folder runs. What is there but cannot
    be read as a run is noted.
    """
    import json

    from ccsnet.files import atomic_path
    from ccsnet.runs import find_runs, sort_runs
    from ccsnet.terminal import make_console, table

    named = bool(arguments) and not arguments[0].startswith("-")
    folder = Path(arguments[0]).expanduser() if named else Path("runs")
    options: RunsArguments = parse(
        RunsArguments, "runs", arguments[named:], description=runs.__doc__
    )
    found, notes = find_runs(folder)
    found = sort_runs(found, SORTED_BY[options.sort])
    columns = {"run": "left", "data": "left", "backbone": "left", "head": "left"}
    columns |= dict.fromkeys(("steps", "mIoU", "images/s", "hours", "state"), "right")
    console = make_console()
    if found:
        rows = [_row(run, folder) for run in found]
        title = f"{len(found)} run{'s' * (len(found) != 1)} in {folder}"
        console.print(table(title, columns, rows, compact=True))
    else:
        console.print(f"No run in {folder}.", highlight=False, markup=False)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json is not None:
        with atomic_path(options.json) as aside:
            aside.write_text(json.dumps([run.to_dict() for run in found], indent=2) + "\n")
    return 0


def _row(run: "RunSummary", folder: Path) -> list[str]:
    inside = run.path.relative_to(folder)
    speed = run.images_per_second
    return [
        run.path.resolve().name if inside == Path() else str(inside),
        run.dataset,
        run.backbone,
        run.head,
        f"{run.step}/{run.steps}",
        "-" if run.best_miou is None else f"{100 * run.best_miou:.1f}",
        "-" if speed is None else f"{speed:.3g}" if speed < 1000 else f"{speed:.0f}",
        f"{run.hours:.2f}" if run.hours < 10 else f"{run.hours:.1f}",
        run.state,
    ]

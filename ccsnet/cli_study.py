"""`ccsnet study`: arguments, one call, tables. Like `cli`, this module prints."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccsnet.arguments import parse, positional
from ccsnet.errors import InputError

if TYPE_CHECKING:
    from ccsnet.study import Study
    from ccsnet.study_cells import Cell
    from ccsnet.study_cost import Cost
    from ccsnet.study_runner import Failure

RESULTS_FILE, TABLE_FILE, TIMING_FILE = "results.json", "results.md", "timing.json"


@dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """How to run it."""

    out: Path | None = None
    """Folder of the runs and the tables; none: runs/NAME-OF-FILE."""
    data: tuple[str, ...] = ()
    """NAME=PATH: where a data set of the study lies on this machine."""
    jobs: int = 1
    """Runs at once; the processors are shared out among them."""
    timing: bool = False
    """At the end also measure milliseconds an image; run nothing else meanwhile."""
    table_only: bool = False
    """Train nothing: the tables of what is finished."""
    dry_run: bool = False
    """Only check the file, and show what would be run."""
    markdown: Path | None = None
    """Also put the tables into this file, between the lines `<!-- study: NAME -->` and
    `<!-- end -->`."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"jobs is {self.jobs}; it must be at least 1.")
        if self.dry_run and (self.table_only or self.timing or self.markdown is not None):
            raise InputError(
                "--dry-run writes nothing: leave out --table-only, --timing and --markdown."
            )


def study(arguments: list[str]) -> int:
    """Compare settings over seeds: ccsnet study FILE [--out DIR] [--jobs N] [...].

    FILE names rows of settings and seeds (docs/study.md). Each is trained and evaluated once; the
    same command goes on after any stop. The tables go to the terminal and to --out.
    """
    file, arguments = positional("file", arguments, "study", StudyArguments, study.__doc__)
    options: StudyArguments = parse(StudyArguments, "study", arguments, description=study.__doc__)
    from ccsnet.study_cells import cells_of, check_settings
    from ccsnet.study_file import read_study
    from ccsnet.study_table import check_section

    found = read_study(Path(file), _places(options.data))
    if options.markdown is not None:
        check_section(options.markdown, found.name)
    found, costs = _counted(found, options)
    cells = cells_of(found, options.out or Path("runs") / found.name)
    if options.dry_run:
        _show(found, cells, costs)
        return 0
    check_settings(cells)
    failures = [] if options.table_only else _run(found, cells, options)
    _write(found, cells, costs, options)
    for failure in failures:
        lines = "\n  ".join(failure.said)
        print(
            f"failed: {failure.cell} ({failure.what}, {_ended(failure.status)}; all it said is in "
            f"{failure.log})\n  {lines}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _ended(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"


def _places(given: Sequence[str]) -> dict[str, str]:
    places = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not (name and sign and path):
            raise InputError(f"--data is {one!r}; it must be NAME=PATH, as camvid=/data/camvid.")
        places[name] = path
    return places


def _counted(study: "Study", options: StudyArguments) -> tuple["Study", dict[str, "Cost"]]:
    """The study with its heads matched, and what the models cost, where that can be known."""
    from ccsnet.data.opening import open_dataset
    from ccsnet.study_cost import CostCounter, matched

    if not (options.dry_run or options.table_only):
        open_dataset(next(iter(study.rows.values())).config.data)  # Not in several runs at once.
    if study.spec is None:
        if study.match is not None and not options.dry_run:
            raise InputError(
                f"To match the heads, the classes of {study.data!r} must be known, and the data "
                f"are not here: --data {study.data}=PATH."
            )
        return study, {}
    counter = CostCounter(study.spec)
    study = matched(study, counter)
    return study, {name: counter.cost(row.config.model) for name, row in study.rows.items()}


def _show(study: "Study", cells: Sequence["Cell"], costs: dict[str, "Cost"]) -> None:
    from ccsnet.terminal import make_console, table

    console = make_console()
    backbones = {row.config.model.backbone for row in study.rows.values()}
    several = ["backbone"] if len(backbones) > 1 else []
    rows = [
        [
            name,
            *(row.config.model.backbone for _ in several),
            row.config.model.head,
            "?" if study.match and not costs else str(row.config.model.head_config.dim),
            f"{costs[name].parameters / 1e6:.2f}" if costs else "?",
            f"{costs[name].gmacs:.2f}" if costs else "?",
            ", ".join(f"{num} {state}" for state, num in _states(cells, name).items()),
        ]
        for name, row in study.rows.items()
    ]
    columns = dict.fromkeys(["row", *several, "head"], "left")
    columns |= dict.fromkeys(("dim", "M parameters", "GMACs"), "right") | {"runs": "left"}
    console.print(table(f"{study.title}: {len(cells)} runs", columns, rows, compact=True))
    if study.spec is None:
        console.print(
            f"The data are not at {study.place or study.data}: --data {study.data}=PATH.",
            highlight=False,
            markup=False,
        )
    for cell in cells[: len(study.rows)]:
        print(shlex.join(["ccsnet", *cell.train]))
    print(shlex.join(["ccsnet", *cells[0].evaluate]))


def _states(cells: Sequence["Cell"], row: str) -> Counter[str]:
    return Counter(cell.state for cell in cells if cell.row == row)


def _run(study: "Study", cells: Sequence["Cell"], options: StudyArguments) -> list["Failure"]:
    """Run what is not finished, and tell how to go on where that is stopped."""
    from rich.console import Console

    from ccsnet.stopping import StopSignals
    from ccsnet.study_runner import run_cells
    from ccsnet.terminal import TerminalReporter

    # The tables alone go to the standard output.
    reporter = TerminalReporter(Console(soft_wrap=True, stderr=True))
    try:
        with StopSignals() as signals:
            return run_cells(cells, jobs=options.jobs, reporter=reporter, signals=signals)
    except KeyboardInterrupt:
        print(
            "What is finished is kept, what was running has saved: the same command goes on.",
            file=sys.stderr,
        )
        raise


def _write(
    study: "Study", cells: Sequence["Cell"], costs: dict[str, "Cost"], options: StudyArguments
) -> None:
    """The tables, to the terminal and into files."""
    import json

    from ccsnet.files import atomic_path
    from ccsnet.study_results import results
    from ccsnet.study_table import markdown, write_section

    out = cells[0].out.parent
    timing = _timing(cells, out, anew=options.timing)
    found = results(study, cells, costs, timing)
    text = markdown(found)
    for name, content in (
        (RESULTS_FILE, json.dumps(found, indent=1) + "\n"),
        (TABLE_FILE, text),
    ):
        with atomic_path(out / name) as aside:
            aside.write_text(content, "utf-8")
    if options.markdown is not None:
        write_section(options.markdown, study.name, text)
    print(text, end="")


def _timing(cells: Sequence["Cell"], out: Path, *, anew: bool) -> dict[str, Any] | None:
    """What was measured before, or now; only finished rows can be."""
    import json

    path = out / TIMING_FILE
    finished = {cell.row: cell for cell in reversed(cells) if cell.state == "done"}
    if anew and finished:
        from rich.console import Console

        from ccsnet.files import atomic_path
        from ccsnet.study_timing import measure
        from ccsnet.terminal import TerminalReporter

        in_order = dict(reversed(finished.items()))
        found = measure(in_order, TerminalReporter(Console(soft_wrap=True, stderr=True)))
        with atomic_path(path) as aside:
            aside.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return json.loads(path.read_text("utf-8")) if path.is_file() else None

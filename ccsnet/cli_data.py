"""The verbs of `ccsnet data`: an argument, one call, a table. Like `cli`, this module prints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccsnet.arguments import parse, positional
from ccsnet.cli_data_make import import_, prepare, shard
from ccsnet.errors import unknown_name
from ccsnet.usage import examples, summary

if TYPE_CHECKING:
    from rich.console import Console

    from ccsnet.data.findings import CheckReport

FILES_SHOWN = 3  # Of each kind of problem; --json has all.


def data(arguments: list[str]) -> int:
    """Get data ready and look at it: ccsnet data prepare|init|import|check|browse|shard ..."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ccsnet data VERB ...\n")
        for verb, function in VERBS.items():
            print(f"  {verb:10} {summary(function)}")
        print(*examples("data"), "\n`ccsnet data VERB --help` shows a verb's options.", sep="\n")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise unknown_name("verb of `ccsnet data`", verb, VERBS)
    return VERBS[verb](rest)


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """What to check."""

    root: Path | None = None
    """The data's folder; none: the data set's own default."""
    split: tuple[str, ...] = ()
    """Which splits; none: all, of which training needs train and val."""
    json: Path | None = None
    """Also write everything that was found to this file."""
    workers: int = -1
    """Processes that read; 0 reads in this one, -1 takes as many as there are processors."""


def check(arguments: list[str]) -> int:
    """Read every file and list all that is wrong: ccsnet data check DATASET [--json FILE] [...].

    DATASET is as for `ccsnet train`. The exit status is 1 when training would fail.
    """
    import json

    from ccsnet.data.check import check_dataset
    from ccsnet.data.opening import DataConfig, open_dataset
    from ccsnet.files import atomic_path
    from ccsnet.terminal import TerminalReporter, make_console

    name, rest = positional("data set", arguments, "data check", CheckArguments, check.__doc__)
    options: CheckArguments = parse(CheckArguments, "data check", rest, description=check.__doc__)
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    console = make_console()
    report = check_dataset(
        spec,
        root,
        options.split,
        workers=options.workers,
        reporter=TerminalReporter(console),
    )
    if options.json is not None:
        with atomic_path(options.json) as aside:
            aside.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    _print_report(console, report)
    return 1 if report.fails else 0


def _print_report(console: "Console", report: "CheckReport") -> None:
    from ccsnet.data.findings import KINDS
    from ccsnet.metrics import percent
    from ccsnet.terminal import table

    def shown(share: float | None) -> str:
        return "-" if share is None else percent(share)

    splits = report.splits
    columns = {"split": "left", "images": "right", "labels": "left", "unlabelled pixels %": "right"}
    rows = [
        [name, str(facts.images), "yes" if facts.labelled else "no", shown(facts.unlabelled_share)]
        for name, facts in splits.items()
    ]
    console.print(table(f"{report.spec.name} in {report.root}", columns, rows))
    labelled = {name: facts for name, facts in splits.items() if facts.labelled}
    if labelled:
        weights = report.class_weights
        columns = {"class": "left"} | {f"{name} %": "right" for name in labelled}
        columns |= {"suggested weight": "right"} if weights else {}
        rows = [
            [name, *(shown(facts.shares[i]) for facts in labelled.values())]
            + ([f"{weights[i]:.2f}"] if weights else [])
            for i, name in enumerate(report.spec.classes)
        ]
        console.print(table("Share of labelled pixels", columns, rows))
    by_kind = report.by_kind()
    if by_kind:
        columns = {"problem": "left", "number": "right", "splits": "left", "first": "left"}
        rows = []
        for kind, problems in by_kind.items():
            files = [report.name_of(p.file) for p in problems if p.file is not None]
            more = f", and {len(files) - FILES_SHOWN} more" if len(files) > FILES_SHOWN else ""
            where = ", ".join(dict.fromkeys(p.split for p in problems))
            first = ", ".join(files[:FILES_SHOWN]) + more
            rows.append([kind, str(len(problems)), where, first])
        console.print(table("Problems", columns, rows))
        for kind, problems in by_kind.items():
            mark = "error" if KINDS[kind] else "note"
            for problem in problems[:FILES_SHOWN]:
                console.print(f"{mark}: {kind}: {problem.text}", highlight=False, markup=False)
    console.print(_verdict(report), highlight=False, markup=False)


def _verdict(report: "CheckReport") -> str:
    num = len(report.problems)
    found = f"{num} problem{'s' * (num != 1)} found" if num else "No problem found"
    if report.fails:
        return f"{found}: training would fail."
    return f"{found}: nothing that training would fail on." if num else f"{found}."


@dataclass(frozen=True, kw_only=True)
class BrowseArguments:
    """What to show."""

    root: Path | None = None
    """The data's folder; none: the data set's own default."""
    out: Path | None = None
    """The page; none: NAME.html in this folder."""
    images: int = 12
    """Samples, spread over the splits."""
    workers: int = -1
    """Processes that read labels; -1 takes as many as there are processors."""


def browse(arguments: list[str]) -> int:
    """Show a data set in one HTML page: ccsnet data browse DATASET [--out FILE.html] [...].

    DATASET is as for `ccsnet train`. The page has samples with their labels, the classes' colours
    and shares, each class where it is large, and images as training sees them.
    """
    from ccsnet.data.browse import write_page
    from ccsnet.data.opening import DataConfig, open_dataset
    from ccsnet.terminal import TerminalReporter, make_console

    name, rest = positional("data set", arguments, "data browse", BrowseArguments, browse.__doc__)
    options: BrowseArguments = parse(
        BrowseArguments, "data browse", rest, description=browse.__doc__
    )
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    out = options.out or Path(f"{spec.name}.html")
    console = make_console()
    page = write_page(
        out,
        spec,
        root,
        num_images=options.images,
        workers=options.workers,
        reporter=TerminalReporter(console),
    )
    if page.problems:
        num = len(page.problems)
        console.print(
            f"{num} problem{'s' * (num > 1)}, told in the page; `ccsnet data check {name}` finds "
            "all.",
            highlight=False,
            markup=False,
        )
    console.print(f"Open the page: {out.resolve()}", highlight=False, markup=False)
    return 0


@dataclass(frozen=True, kw_only=True)
class InitArguments:
    """Where to write."""

    out: Path | None = None
    """The file to write; none: dataset.yaml in the folder."""


def init(arguments: list[str]) -> int:
    """Describe a folder of images and labels: ccsnet data init FOLDER [--out FILE.yaml].

    Looks at the files' names and at 200 labels, and writes a dataset.yaml to train from: classes,
    what stands for them, patterns, splits. A file that is there is not replaced.
    """
    from ccsnet.data.init import describe
    from ccsnet.metrics import percent
    from ccsnet.terminal import TerminalReporter, make_console, table

    place, rest = positional("folder", arguments, "data init", InitArguments, init.__doc__)
    options: InitArguments = parse(InitArguments, "data init", rest, description=init.__doc__)
    folder = Path(place).expanduser()
    console = make_console()
    reporter = TerminalReporter(console)
    try:
        made = describe(folder, options.out, reporter)
    finally:
        reporter.end()
    found = [*zip(made.names, made.coding.classes, strict=True)]
    found += [("(unlabelled)", entry) for entry in made.coding.ignored]
    rows = [[e.shown, name, percent(e.share), str(e.labels)] for name, e in found]
    heading = "colour" if made.coding.kind == "colours" else "value"
    columns = {heading: "right", "class": "left", "% of pixels": "right", "labels": "right"}
    console.print(table(f"Found in {made.coding.looked_at} labels", columns, rows))
    for note in made.notes:
        console.print(f"note: {note}.", highlight=False, markup=False)
    counts = ", ".join(f"{name} {num}" for name, num in made.counts.items())
    data = made.file if options.out else folder
    unlabelled = " Does one mean unlabelled? Add a line such as ignore: [NAME]."
    if made.coding.ignored or made.coding.rest:
        unlabelled = ""
    console.print(
        f"{sum(made.counts.values())} images ({counts}). Wrote {made.file}: name the classes there."
        f"{unlabelled}\nNext: ccsnet data browse {data} shows which class is which; "
        f"ccsnet train {data} trains",
        highlight=False,
        markup=False,
    )
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "prepare": prepare,
    "init": init,
    "check": check,
    "browse": browse,
    "import": import_,
    "shard": shard,
}

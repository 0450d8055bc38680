"""The verbs of `ccsnet data`: an argument, one call, a table. Like `cli`, this module prints."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ccsnet.arguments import before_options, parse, positional
from ccsnet.errors import InputError, unknown_name
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
class PrepareArguments:
    """Where to, and how."""

    out: Path | None = None
    """The folder to make; none: data/NAME, or the folder that was unpacked by hand."""
    workers: int = -1
    """Processes that share the work; 0 works in this one, -1 takes as many as processors."""
    again: bool = False
    """Make everything anew, even if it is there."""


def prepare(arguments: list[str]) -> int:
    """Make a data set ready to train on: ccsnet data prepare NAME SOURCE... [--out DIR] [...].

    SOURCE is an archive as downloaded, a folder that holds archives, or a folder where they were
    unpacked by hand. Without one, an interrupted preparation goes on. The exit status is 1 when
    less was found than the data set promises.
    """
    from ccsnet.data.parallel import num_processors
    from ccsnet.data.prepare import default_out
    from ccsnet.data.prepare import prepare as make_ready
    from ccsnet.datasets._spec import DatasetSpec
    from ccsnet.plugins import find_plugin
    from ccsnet.terminal import TerminalReporter, table

    name, rest = positional(
        "data set", arguments, "data prepare", PrepareArguments, prepare.__doc__
    )
    words, rest = before_options(rest)
    sources = [Path(word).expanduser() for word in words]
    options: PrepareArguments = parse(
        PrepareArguments, "data prepare", rest, description=prepare.__doc__
    )
    spec = find_plugin("ccsnet.datasets", name, "SPEC")
    if not isinstance(spec, DatasetSpec):
        raise InputError(f"{name} is a {type(spec).__name__}; a data set must be a DatasetSpec.")
    out: Path = options.out.expanduser() if options.out else default_out(spec, sources)
    console = _console()
    try:
        made = make_ready(
            spec,
            sources,
            out,
            workers=num_processors() if options.workers == -1 else options.workers,
            reporter=TerminalReporter(console),
            again=options.again,
        )
    except KeyboardInterrupt:
        console.print(
            f"Stopped; what is finished is kept. `ccsnet data prepare {name} --out {out}` goes on.",
            highlight=False,
            markup=False,
        )
        return 130
    promised = {split: "-" if num is None else str(num) for split, num in made.promised.items()}
    rows = [
        [split, str(num.images), promised[split], str(num.labels)]
        for split, num in made.found.items()
    ]
    columns = {"split": "left", "images": "right", "promised": "right", "labels": "right"}
    console.print(table(f"{spec.name} in {out}", columns, rows))
    for problem in made.problems:
        print(f"warning: {problem}", file=sys.stderr)
    done = "Was prepared already" if made.reused else "Ready"
    root = "" if out == Path(spec.default_root) else f" --root {out}"
    console.print(f"{done}: ccsnet train {name}{root}", highlight=False, markup=False)
    return 1 if made.problems else 0


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
    from ccsnet.data.loading import DataConfig, open_dataset
    from ccsnet.files import atomic_path
    from ccsnet.terminal import TerminalReporter

    name, rest = positional("data set", arguments, "data check", CheckArguments, check.__doc__)
    options: CheckArguments = parse(CheckArguments, "data check", rest, description=check.__doc__)
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    console = _console()
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
    from ccsnet.data.loading import DataConfig, open_dataset
    from ccsnet.terminal import TerminalReporter

    name, rest = positional("data set", arguments, "data browse", BrowseArguments, browse.__doc__)
    options: BrowseArguments = parse(
        BrowseArguments, "data browse", rest, description=browse.__doc__
    )
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    out = options.out or Path(f"{spec.name}.html")
    console = _console()
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
class ImportArguments:
    """What to make of the labels."""

    out: Path
    """Folder for the data set; one that holds anything is not touched."""
    format: Literal["auto", "labelme", "coco", "cvat", "voc"] = "auto"
    """The program that made the labels; auto: by what the files hold."""
    images: Path | None = None
    """Where the images are; none: in SOURCE, beside the label files."""
    classes: tuple[str, ...] = ()
    """Names in the order of the class numbers; none: as SOURCE lists them, else by the alphabet."""
    unlabelled: Literal["background", "ignore"] = "background"
    """Pixels that nobody has drawn on: a class of that name, or neither learnt from nor counted."""
    val: float = 0.2
    """Share of the images for validation, where SOURCE has no splits."""


def import_(arguments: list[str]) -> int:
    """Take labels of LabelMe, COCO, CVAT or VOC: ccsnet data import SOURCE --out FOLDER [...].

    SOURCE is a file or folder that the program wrote. FOLDER becomes a data set to train on, with
    label maps, links to the images and a dataset.yaml.
    """
    from ccsnet.data.foreign import import_labels
    from ccsnet.metrics import percent
    from ccsnet.terminal import TerminalReporter, table

    source, rest = positional("source", arguments, "data import", ImportArguments, import_.__doc__)
    options: ImportArguments = parse(
        ImportArguments, "data import", rest, description=import_.__doc__
    )
    console = _console()
    reporter = TerminalReporter(console)
    try:
        made = import_labels(
            Path(source).expanduser(),
            options.out,
            kind=options.format,
            images=options.images,
            classes=options.classes,
            unlabelled=options.unlabelled,
            val_share=options.val,
            reporter=reporter,
        )
    finally:
        reporter.end()
    total = sum(made.pixels) + made.ignored
    rows = [
        [str(number), name, percent(pixels / total)]
        for number, (name, pixels) in enumerate(zip(made.classes, made.pixels, strict=True))
    ]
    rows.append(["-", "ignored", percent(made.ignored / total)])
    console.print(
        table(
            f"Imported from {made.kind}",
            {"": "right", "class": "left", "% of pixels": "right"},
            rows,
        )
    )
    splits = ", ".join(f"{name} {num}" for name, num in made.splits.items())
    console.print(
        f"{sum(made.splits.values())} images ({splits}) in {made.folder}. "
        f"Next: ccsnet train {made.folder}",
        highlight=False,
        markup=False,
    )
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
    from ccsnet.terminal import TerminalReporter, table

    place, rest = positional("folder", arguments, "data init", InitArguments, init.__doc__)
    options: InitArguments = parse(InitArguments, "data init", rest, description=init.__doc__)
    folder = Path(place).expanduser()
    console = _console()
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


@dataclass(frozen=True, kw_only=True)
class ShardArguments:
    """Which files, and where to."""

    out: Path
    """Folder for the shards; new, or one that an interrupted call has begun."""
    root: Path | None = None
    """The data's folder; none: the data set's own default."""
    splits: tuple[str, ...] = ()
    """Which splits; none: all that are there. More can be added later."""
    size: int = 256
    """MiB per shard."""


def shard(arguments: list[str]) -> int:
    """Copy a data set into tar shards: ccsnet data shard DATASET --out DIR [--size 256] [...].

    For data of many small files on a network disk. DATASET is as for `ccsnet train`; an own
    dataset.yaml is copied too. DIR is then trained on like the folder, with the same samples in
    the same order. A call that was interrupted goes on when it is given again.
    """
    from ccsnet.data.loading import DataConfig, open_dataset
    from ccsnet.data.shard import MEBIBYTE, own_description, shard_dataset
    from ccsnet.terminal import TerminalReporter, table

    name, rest = positional("data set", arguments, "data shard", ShardArguments, shard.__doc__)
    options: ShardArguments = parse(ShardArguments, "data shard", rest, description=shard.__doc__)
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    out = options.out.expanduser()
    description = own_description(name, spec)
    console = _console()
    reporter = TerminalReporter(console)
    try:
        made = shard_dataset(
            spec,
            root,
            out,
            splits=options.splits,
            shard_bytes=options.size * MEBIBYTE,
            description=description,
            reporter=reporter,
        )
    except KeyboardInterrupt:
        reporter.end()
        console.print(
            "Stopped; finished shards are kept. The same command goes on.",
            highlight=False,
            markup=False,
        )
        return 130
    finally:
        reporter.end()
    rows = []
    for split, found in made.index.splits.items():
        entries = [entry for one in found.shards for entry in one.entries]
        labels = sum(entry.label is not None for entry in entries)
        size = sum(one.size for one in found.shards) / MEBIBYTE
        rows.append([split, *map(str, (len(entries), labels, len(found.shards))), f"{size:,.1f}"])
    columns = ("images", "labels", "shards", "MiB")
    console.print(
        table(f"{spec.name} in {out}", {"split": "left"} | dict.fromkeys(columns, "right"), rows)
    )
    for split in made.left_out:
        console.print(f"note: {split} is not in {root}, and left out.", highlight=False)
    done = f"Wrote {made.written} shards" if made.written else "All shards were there"
    place = f"{name} --root {out}" if description is None else str(out)
    console.print(f"{done}. Next: ccsnet train {place}", highlight=False, markup=False)
    return 0


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=True)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "prepare": prepare,
    "init": init,
    "check": check,
    "browse": browse,
    "import": import_,
    "shard": shard,
}

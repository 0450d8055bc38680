"""The verbs of `ccsnet data` that make a data set: of archives, of other labels, as shards."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ccsnet.arguments import before_options, parse, positional
from ccsnet.errors import InputError


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
    from ccsnet.terminal import TerminalReporter, make_console, table

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
    console = make_console()
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
    from ccsnet.terminal import TerminalReporter, make_console, table

    source, rest = positional("source", arguments, "data import", ImportArguments, import_.__doc__)
    options: ImportArguments = parse(
        ImportArguments, "data import", rest, description=import_.__doc__
    )
    console = make_console()
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
        f"Next: ccsnet train {made.folder}{_split_options(made.splits)}",
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
    from ccsnet.data.opening import DataConfig, open_dataset
    from ccsnet.data.shard import MEBIBYTE, own_description, shard_dataset
    from ccsnet.terminal import TerminalReporter, make_console, table

    name, rest = positional("data set", arguments, "data shard", ShardArguments, shard.__doc__)
    options: ShardArguments = parse(ShardArguments, "data shard", rest, description=shard.__doc__)
    spec, root = open_dataset(DataConfig(dataset=name, root=options.root))
    out = options.out.expanduser()
    description = own_description(name, spec)
    console = make_console()
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


def _split_options(splits: Mapping[str, int]) -> str:
    """What `ccsnet train` must be told where the source calls its splits otherwise."""
    needed = [name for name in ("train", "val") if name not in splits]
    others = sorted(
        (name for name in splits if name not in ("train", "val")), key=lambda name: splits[name]
    )
    # The largest of the others is to learn from.
    return "".join(f" --{name}-split {others.pop()}" for name in needed if others)

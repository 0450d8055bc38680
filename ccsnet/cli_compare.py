"""`ccsnet compare`: two runs, one call, tables. Like `cli`, this module prints."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccsnet.arguments import parse, positional, second
from ccsnet.errors import InputError
from ccsnet.files import check_writable_file

if TYPE_CHECKING:
    from ccsnet.checkpoint import Checkpoint
    from ccsnet.compare import Comparison
    from ccsnet.compare_page import Subject
    from ccsnet.data.opening import DataConfig
    from ccsnet.datasets._spec import DatasetSpec

CLASSES_SHOWN, IMAGES_SHOWN = 12, 5  # In the terminal; --json has all.
BATCH_SIZE = 8  # As in `ccsnet evaluate`.
LEFT_OUT = "left out"


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """What to compare them on, and where to write it."""

    dataset: str | None = None
    """Another data set with the same classes; none: the one that both validated on."""
    root: Path | None = None
    """Its folder."""
    split: str | None = None
    """Which split; none: the one that both validated on, or the only one with labels."""
    out: Path | None = None
    """Write a page to this .html file: classes, causes, pictures."""
    images: int = 6
    """How many of the images that lose most the page shows; of those that gain most, half."""
    overwrite: bool = False
    """Replace what is there at --out."""
    json: Path | None = None
    """Also write all figures to this file; it is replaced when it is there."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def compare(arguments: list[str]) -> int:
    """See where a run loses to another: ccsnet compare RUN BASELINE [--out PAGE.html] [...].

    RUN and BASELINE are runs' folders (their best checkpoints) or .safetensors files, of the same
    data. Shown are the classes and the images on which RUN is worse, what their pixels were taken
    for, and what these have in common; for the head ccs, also what its coarse prediction and its
    choice of classes have to do with it.
    """
    run_name, arguments = positional("run", arguments, "compare", CompareArguments, compare.__doc__)
    question = f"Compared with which run? ccsnet compare {run_name} BASELINE"
    other_name, arguments = second(
        question, arguments, "compare", CompareArguments, compare.__doc__
    )
    options: CompareArguments = parse(
        CompareArguments, "compare", arguments, description=compare.__doc__
    )
    _check(options)
    return _compare(run_name, other_name, options)


def _check(options: CompareArguments) -> None:
    """Refuse what could only fail after the work is done."""
    if not 0 <= options.images <= 100:
        raise InputError(f"images is {options.images}; it must be from 0 to 100.")
    check_writable_file(options.json, "--json")
    out = options.out
    if out is None:
        return
    if out.is_dir():
        raise InputError(f"--out is {out}, a folder; name a file, such as {out / 'compare.html'}.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out is {out}; name the page to write, such as {out}.html.")
    if out.exists() and not options.overwrite:
        raise InputError(
            f"{out} is there already. Name another file, or replace it with --overwrite."
        )
    check_writable_file(out, "--out")


def _compare(run_name: str, other_name: str, options: CompareArguments) -> int:
    from ccsnet.compare import compare as count
    from ccsnet.data.opening import test_sides
    from ccsnet.evaluate import pipeline_samples
    from ccsnet.hub import open_run
    from ccsnet.inference import Pipeline
    from ccsnet.predict import predictor_of
    from ccsnet.predict_config import PredictConfig
    from ccsnet.terminal import TerminalReporter, make_console

    checkpoints = [open_run(name) for name in (run_name, other_name)]
    if checkpoints[0].path.resolve() == checkpoints[1].path.resolve():
        raise InputError(
            f"{run_name} and {other_name} are one file, {checkpoints[0].path}: a run does not "
            "differ from itself. Name another baseline."
        )
    data, spec, root, split = _common_data(checkpoints, options)
    console = make_console()
    reporter = TerminalReporter(console)
    pipelines = [
        Pipeline(
            models=predictor_of(one, "cpu" if options.cpu else None).models,
            num_classes=spec.num_classes,
            config=PredictConfig(batch_size=BATCH_SIZE),
            sides=test_sides(spec, data),
            tested_in=spec.window,
            note=reporter.note,
        )
        for one in checkpoints
    ]
    samples = pipeline_samples(pipelines[0], spec, root, data, split)
    reporter.start("comparing", len(samples))
    found = count(pipelines[0], pipelines[1], samples, spec, reporter.advance)
    reporter.end()
    if not found.image_rows():
        raise InputError(
            f"No pixel in the split {split!r} of {spec.name} in {root} is labelled as a class, so "
            f"there is nothing to compare. Look at the labels: ccsnet data check {root}"
        )
    subject = _subject(checkpoints, (run_name, other_name), spec, root, split)
    if LEFT_OUT in subject.facts:
        reporter.note(f"Left out: {subject.facts[LEFT_OUT]}")
    if options.json is not None:
        from ccsnet.compare_page import comparison_json
        from ccsnet.figures import write_text

        write_text(options.json, comparison_json(found, subject))
    if options.out is not None:
        from ccsnet.compare_page import write_page

        run, baseline = (
            lambda image, pipeline=pipeline: (
                pipeline.scores([image]).label(0, image.shape[:2]).cpu().numpy()
            )
            for pipeline in pipelines
        )
        write_page(
            options.out,
            found,
            subject,
            spec,
            pairs=spec.pairs(root, split),
            predict=(run, baseline),
            num_images=options.images,
            reporter=reporter,
        )
        reporter.end()
    _tell(found, subject, options)
    return 0


def _common_data(
    checkpoints: "list[Checkpoint]", options: CompareArguments
) -> "tuple[DataConfig, DatasetSpec, Path, str]":
    """What both runs are measured on.

    Raises:
        InputError: They are of different data, classes or splits, or tested at different sizes.
    """
    from ccsnet.data.opening import open_dataset, test_sides
    from ccsnet.evaluate import labelled_split
    from ccsnet.preflight import check_classes

    opened = []
    for checkpoint in checkpoints:
        data = checkpoint.config.data
        if options.dataset is not None:
            data = dataclasses.replace(data, dataset=options.dataset, root=None)
        if options.root is not None:
            data = dataclasses.replace(data, root=options.root)
        spec, root = open_dataset(data)
        check_classes(checkpoint, spec)
        sides, split = test_sides(spec, data), options.split or labelled_split(spec, data.val_split)
        opened.append((data, spec, root, split, sides))
    (data, spec, root, split, sides), (_, other, other_root, other_split, other_sides) = opened
    names = [str(checkpoint.path.parent) for checkpoint in checkpoints]
    if (spec.name, root.resolve()) != (other.name, other_root.resolve()):
        raise InputError(
            f"The runs are of different data: {names[0]} of {spec.name!r} in {root}, {names[1]} of "
            f"{other.name!r} in {other_root}. Say on which both are to be compared: --dataset."
        )
    if spec.classes != other.classes:
        raise InputError(
            f"The classes of {names[0]} and {names[1]} do not match. Compare runs of one data set."
        )
    if split != other_split:
        raise InputError(
            f"The runs validated on different splits: {names[0]} on {split!r}, {names[1]} on "
            f"{other_split!r}. Say on which both are to be compared: --split {split}."
        )
    if sides != other_sides:
        raise InputError(
            f"The runs are tested at different sizes: {names[0]} with short and long side {sides}, "
            f"{names[1]} with {other_sides}. What differs would be the size as much as the model. "
            "Compare runs of one size; `ccsnet evaluate` measures each at its own."
        )
    return data, spec, root, split


def _subject(
    checkpoints: "list[Checkpoint]",
    given: tuple[str, str],
    spec: "DatasetSpec",
    root: Path,
    split: str,
) -> "Subject":
    """Names for readers, as short as they differ."""
    from ccsnet.compare_page import Subject

    run, baseline = (
        one.path.stem if Path(name).is_file() else Path(name).resolve().name
        for one, name in zip(checkpoints, given, strict=True)
    )
    if run == baseline:
        run, baseline = given
    facts: dict[str, object] = {
        "images": f"split {split} of {spec.name} in {root}",
        **{
            kind: {
                "model": f"{one.config.model.head} on {one.config.model.backbone}",
                "file": str(one.path),
                "step": one.step,
                "seed": one.config.train.seed,
            }
            for kind, one in zip(("run", "baseline"), checkpoints, strict=True)
        },
    }
    if spec.window is not None and checkpoints[0].config.model.head == "ccs":
        facts[LEFT_OUT] = (
            "what the coarse prediction has to do with it. The images are seen in windows, each "
            "with a coarse prediction of its own."
        )
    return Subject(run=run, baseline=baseline, dataset=spec.name, split=split, facts=facts)


def _tell(found: "Comparison", subject: "Subject", options: CompareArguments) -> None:
    """Print what was found, the worst of it."""
    from ccsnet.compare_page import (
        CAVEAT,
        cause_texts,
        fine_points,
        lead,
        points,
        shares_text,
        within,
    )
    from ccsnet.metrics import percent
    from ccsnet.terminal import make_console, table

    console = make_console()

    def say(*lines: str) -> None:
        console.print(*lines, sep="\n", highlight=False, markup=False)

    say(lead(found, subject), CAVEAT, "")
    classes = found.class_rows()
    columns = {"class": "left", subject.run: "right", subject.baseline: "right"}
    columns |= {"points": "right", "95 %": "right", "lost pixels go to": "left"}
    rows = [
        [
            row.name,
            percent(row.run),
            percent(row.baseline),
            points(row.difference),
            within(row.low, row.high),
            shares_text(row.given_to, 2),
        ]
        for row in classes[:CLASSES_SHOWN]
    ]
    rest = len(classes) - len(rows)
    more = f", {rest} more in --json and --out" if rest else ""
    console.print(table(f"IoU %, worst differences first{more}", columns, rows, compact=True))
    causes = found.cause_rows()
    texts = cause_texts(causes, found)
    say(texts[0], "")
    rows = [
        [row.meaning, *map(percent, (row.lost, row.gained, row.everywhere)), _lift(row.lift)]
        for row in causes
    ]
    columns = {"of the pixels, %": "left"}
    columns |= dict.fromkeys(("lost", "gained", "all", "lift"), "right")
    console.print(table("Why", columns, rows, compact=True))
    say(*texts[1:])
    costly = [row for row in found.image_rows() if row.cost > 0][:IMAGES_SHOWN]
    rows = [
        [row.name, fine_points(-row.cost), *map(percent, (row.run_miou, row.baseline_miou))]
        for row in costly
    ]
    if rows:
        columns = {"image": "left", "points": "right"}
        columns |= {subject.run: "right", subject.baseline: "right"}
        say("")
        console.print(
            table(
                "The images that cost most, points of mIoU over the set; mIoU of the image %",
                columns,
                rows,
                compact=True,
            )
        )
    for path in (options.out, options.json):
        if path is not None:
            say(f"Written: {path}")


def _lift(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"

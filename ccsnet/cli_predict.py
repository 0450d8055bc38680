"""The verbs that use a trained model: an argument, one call, a table. Like `cli`, this prints."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ccsnet.arguments import before_options, parse, positional
from ccsnet.cli_export import predict_exported
from ccsnet.errors import InputError
from ccsnet.files import check_writable_file
from ccsnet.predict_config import PredictConfig

if TYPE_CHECKING:
    from ccsnet.evaluate import Evaluation
    from ccsnet.parallel import Processes


WORST_SHOWN = 5  # Images in the terminal.


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """How to evaluate."""

    dataset: str | None = None
    """Another data set with the same classes; none: the one that the run validated on."""
    root: Path | None = None
    """Its folder."""
    split: str | None = None
    """Which split; none: the run's validation split, or the only one with labels."""
    also: tuple[str, ...] = ()
    """More runs or files of the same classes: the mean of all is measured."""
    how: PredictConfig = field(default_factory=lambda: PredictConfig(batch_size=8))
    boundary: bool = False
    """Also measure the IoU of what lies near the classes' borders."""
    calibration: bool = False
    """Also measure how far the model's confidence is from its accuracy."""
    per_image: bool = False
    """Also show the worst images, and say within what the mIoU lies, by drawing the images anew.
    Always so with --out."""
    out: Path | None = None
    """Folder for all figures: evaluation.json, classes.csv, images.csv (worst first),
    confusion.csv, confusion.png, and evaluation.html, a page with all of it."""
    overwrite: bool = False
    """Replace what an earlier evaluation has left in --out."""
    json: Path | None = None
    """Also write all figures to this file alone; it is replaced when it is there."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def evaluate(arguments: list[str]) -> int:
    """Measure a trained model: ccsnet evaluate RUN [--dataset D] [--split test] [...].

    RUN is a run's folder (its best checkpoint) or a .safetensors file. Another data set must have
    the same classes, as dark_zurich and nighttime_driving have those of cityscapes. Under torchrun
    the processes share the images.
    """
    from ccsnet.parallel import Processes, part

    run_name, arguments = positional(
        "run", arguments, "evaluate", EvaluateArguments, evaluate.__doc__
    )
    options: EvaluateArguments = parse(
        EvaluateArguments, "evaluate", arguments, description=evaluate.__doc__
    )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _evaluate(run_name, options, None)
    try:
        return _evaluate(run_name, options, Processes(cpu=options.cpu))
    except RuntimeError as error:
        from ccsnet.lost_process import explain_timeout

        if explain_timeout(error) is None:
            raise
        raise ConnectionError(
            "Another process was lost, and with it its share of the images. What it said last "
            "tells why. Start the evaluation again."
        ) from error
    finally:
        part()


def _evaluate(run_name: str, options: EvaluateArguments, processes: "Processes | None") -> int:
    from ccsnet.data.opening import open_dataset, test_sides
    from ccsnet.evaluate import evaluate as measure
    from ccsnet.evaluate import labelled_split, pipeline_samples
    from ccsnet.hub import open_run
    from ccsnet.inference import Pipeline
    from ccsnet.predict import predictor_of
    from ccsnet.preflight import check_classes
    from ccsnet.progress import Silent
    from ccsnet.terminal import TerminalReporter, make_console

    check_writable_file(options.json, "--json")
    if options.out is not None:
        from ccsnet.figures import free_folder

        free_folder(options.out, overwrite=options.overwrite)
    checkpoint = open_run(run_name)
    data = checkpoint.config.data
    if options.dataset is not None:
        data = dataclasses.replace(data, dataset=options.dataset, root=None)
    if options.root is not None:
        data = dataclasses.replace(data, root=options.root)
    spec, root = open_dataset(data)
    check_classes(checkpoint, spec)
    speaks = processes is None or processes.is_main
    console = make_console()
    reporter = TerminalReporter(console) if speaks else Silent()
    split = options.split or labelled_split(spec, data.val_split)
    if split != (options.split or data.val_split):
        reporter.note(f"Measured on the split {split!r}, the only one of {spec.name} with labels.")
    device = "cpu" if options.cpu else None if processes is None else str(processes.device)
    also = [open_run(name) for name in options.also]
    pipeline = Pipeline(
        models=predictor_of(checkpoint, device, also=also).models,
        num_classes=len(spec.classes),
        config=options.how,
        sides=test_sides(spec, data),
        tested_in=spec.window,
        note=reporter.note,
    )
    share = (0, 1) if processes is None else (processes.rank, processes.num)
    if processes is not None:  # All take the precision that the first one finds.
        precision = processes.gather([pipeline.mode.precision])[0]
        how = dataclasses.replace(options.how, precision=precision)
        pipeline = dataclasses.replace(pipeline, config=how)
    samples = pipeline_samples(pipeline, spec, root, data, split, *share)
    reporter.start("evaluating", len(samples))
    measured = measure(
        pipeline,
        samples,
        spec.classes,
        ignore_index=spec.ignore_index,
        per_image=options.per_image or options.out is not None,
        boundary=options.boundary,
        calibration=options.calibration,
        progress=reporter.advance,
        processes=processes,
    )
    reporter.end()
    if not speaks:
        return 0
    if options.json is not None:
        from ccsnet.figures import figures_json, write_text

        write_text(options.json, figures_json(measured))
    if options.out is not None:
        from ccsnet.figures import write_evaluation

        write_evaluation(
            options.out,
            measured,
            spec,
            pairs=spec.pairs(root, split),
            predict=lambda image: pipeline.scores([image]).label(0, image.shape[:2]).cpu().numpy(),
            facts={
                "model": " + ".join([run_name, *options.also]),
                "step": checkpoint.step,
                "images": f"split {split} of {spec.name} in {root}",
                "how": dataclasses.asdict(options.how),
            },
            reporter=reporter,
        )
        reporter.end()
    _tell(measured, options)
    return 0


def _tell(measured: "Evaluation", options: EvaluateArguments) -> None:
    """Print the figures, and where they are."""
    from ccsnet.metrics import percent
    from ccsnet.terminal import make_console, metrics_table, table

    metrics, console = measured.metrics, make_console()
    lines: list[str] = []
    if options.calibration:
        lines.append(f"expected calibration error {percent(metrics.ece)}")
    if metrics.per_image is not None:
        low, high = (float(end) for end in metrics.intervals["miou"])
        lines.append(f"95 % of redrawn sets have a mIoU from {percent(low)} to {percent(high)}")
    console.print(*metrics_table(metrics), *lines, sep="\n", highlight=False)
    if measured.per_image:
        rows = [[name, percent(miou)] for name, miou in measured.per_image[:WORST_SHOWN]]
        columns = {"image": "left", "mIoU %": "right"}
        console.print(table("The worst images", columns, rows))
    if options.out is not None:
        said = f"All figures are in {options.out}, and on a page: evaluation.html"
        console.print(said, highlight=False, markup=False)


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """What to predict, and what to keep of it."""

    out: Path = Path("predictions")
    """Folder for the results; one folder inside for each kind."""
    save: tuple[
        Literal["index", "color", "overlay", "contours", "prob", "segments", "area", "relevant"],
        ...,
    ] = ()
    """index: class numbers as grey values; color: the same as a palette PNG; overlay; contours;
    prob: probabilities; segments: connected pieces, COCO's panoptic format; area: a table of the
    classes' areas; relevant: what the network looked at (head ccs). None: color, unless --format
    or --at is given."""
    prob: Literal["npz", "png"] = "npz"
    """How probabilities are written: float16 in one file, or a grey PNG per class."""
    at: tuple[int, int] | None = None
    """A row and a column: also draw where what this pixel read came from, as OUT/at/NAME.png."""
    format: Literal["cityscapes", "ade20k", "loveda"] | None = None
    """Write the numbers that this test server wants, as OUT/FORMAT/NAME-OF-IMAGE.png."""
    also: tuple[str, ...] = ()
    """More runs or files of the same classes: the mean of all is predicted."""
    how: PredictConfig = field(default_factory=PredictConfig)
    resume: bool = False
    """Skip what an earlier call has finished. Several calls with it, also on several machines,
    share the images; so do the processes of torchrun."""
    overwrite: bool = False
    """Replace results that are there already."""
    json: Path | None = None
    """Also write the result, and every image's files and areas, to this file; it is replaced when
    it is there."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def predict(arguments: list[str]) -> int:
    """Label images: ccsnet predict RUN IMAGES... [--save index color overlay] [--out DIR] [...].

    IMAGES are files, folders, or patterns such as 'photos/*.jpg'. Of many, those that cannot be
    labelled are listed at the end, and the exit status is 1. With `--runtime onnxruntime`, RUN is a
    file of `ccsnet export`, and torch is not needed.
    """
    if any(argument.partition("=")[0] == "--runtime" for argument in arguments):
        return predict_exported(arguments)
    run_name, arguments = positional("run", arguments, "predict", PredictArguments, predict.__doc__)
    inputs, arguments = before_options(arguments)
    options: PredictArguments = parse(
        PredictArguments, "predict", arguments, description=predict.__doc__
    )
    if not inputs:
        raise InputError(f"Which images? ccsnet predict {run_name} photo.jpg more/ 'dir/*.png'")
    return _predict(run_name, inputs, options)


def _predict(run_name: str, inputs: list[str], options: PredictArguments) -> int:
    from ccsnet.folders import label_folder
    from ccsnet.metrics import percent
    from ccsnet.predict import load
    from ccsnet.progress import Silent
    from ccsnet.terminal import TerminalReporter, make_console, table

    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    speaks = not together or os.environ.get("RANK") == "0"
    if together and options.overwrite:
        raise InputError(
            "Under torchrun nothing is replaced, since one process cannot tell what another has "
            f"just made from what was there: remove {options.out}, or give another --out."
        )
    console = make_console()
    reporter = TerminalReporter(console) if speaks else Silent()
    predictor = load(run_name, _device_here(options.cpu), also=options.also)
    predictor.note = reporter.note
    save = options.save or (() if options.format or options.at else ("color",))
    try:
        result = label_folder(
            predictor,
            inputs,
            options.out,
            save=["prob_png" if k == "prob" and options.prob == "png" else k for k in save],
            server=options.format,
            at=options.at,
            config=options.how,
            resume=options.resume or together,
            overwrite=options.overwrite,
            summary=options.json,
            finish=speaks,
            reporter=reporter,
        )
    except KeyboardInterrupt:
        if speaks:
            print("What is finished is kept; with --resume the command goes on.", file=sys.stderr)
        raise
    if not speaks:  # torchrun ends all when one of them says that something failed.
        return 0
    num = result.labelled + result.done_before
    if num + result.elsewhere == 0 and len(result.failures) == 1:
        raise InputError(result.failures[0][1])
    for image, error in result.failures:
        print(f"failed: {error if image in error else f'{image}: {error}'}", file=sys.stderr)
    rows = [[name, percent(share)] for name, share in result.areas.items()]
    kinds = [*save, *filter(None, [options.format, "at" if options.at else ""])]
    done = "done before or by others" if together else "done before"
    parts = {done: result.done_before, "in other processes": result.elsewhere}
    parts["failed"] = len(result.failures)
    told = "".join(f", {count} {what}" for what, count in parts.items() if count)
    if rows:
        console.print(table("Share of the pictures", {"class": "left", "%": "right"}, rows))
    console.print(
        f"{num} image{'s' * (num != 1)}: {', '.join(kinds)} in {options.out}{told}",
        highlight=False,
        markup=False,
    )
    return 1 if result.failures else 0


def _device_here(cpu: bool) -> str | None:
    """Where this process computes: each that torchrun starts on a machine has a GPU of its own."""
    import torch

    if cpu:
        return "cpu"
    local = os.environ.get("LOCAL_RANK")
    if local is None or not torch.cuda.is_available():
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"

"""The report of a run: what it reached, how it got there, where it is right and wrong."""

import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ccsnet import __version__
from ccsnet.checkpoint import BEST, read_checkpoint
from ccsnet.config import RunConfig
from ccsnet.data.images import image_size
from ccsnet.data.loading import evaluation_samples
from ccsnet.data.opening import open_dataset, read_pair
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.evaluate import Evaluation, evaluate, stored_evaluation
from ccsnet.metrics import Metrics, percent
from ccsnet.pictures import comparison
from ccsnet.predict import Predictor, predictor_of
from ccsnet.progress import Reporter, Silent, duration
from ccsnet.report import (
    NAMED_CLASSES,
    Code,
    Picture,
    Section,
    Table,
    class_table,
    confusion_plot,
    confusion_table,
    interval_text,
    picture,
    plot,
    reliability_plot,
    training_curve,
    write_report,
)
from ccsnet.runlog import LOG_FILE, VALIDATION_FILE, read_log
from ccsnet.scores import reliability
from ccsnet.trackers import flat_settings

REPORT_FILE = "report.html"
IMAGES_SHOWN = 4  # Of the best, and as many of the worst.
IMAGES_NAMED = 20  # Of the worst, where there are more than are shown.
PIXELS_SHOWN = 40_000_000  # Of all of them together: huge images take long to predict again.
SIZE_SHOWN = (384, 400)  # Most height and width of one picture; four stand side by side.


def write_run_report(
    out: Path,
    *,
    predictor: Predictor | None = None,
    evaluation: Evaluation | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write `report.html` into a run's folder; of all images, eight at most are predicted again.

    Args:
        out: The run's folder. Its best checkpoint is what the report is about.
        predictor: That checkpoint, where it is loaded already.
        evaluation: What it reached on the validation split, each image's mIoU included; none: as
            training has stored it, or else measured now.
        reporter: Who is told how it goes.

    Returns:
        The report's file.

    Raises:
        InputError: The data cannot be read, or the run's files are damaged.
        FileNotFoundError: There is no checkpoint, or the data is not there.
        OSError: The disk is full.
    """
    reporter = reporter or Silent()
    best = read_checkpoint(out / BEST)
    spec, root = open_dataset(best.config.data)
    predictor = predictor or predictor_of(best)
    evaluation = evaluation or stored_evaluation(best)
    if evaluation is None:
        evaluation = _measure(predictor, best.config, spec, root, reporter)
    metrics, split = evaluation.metrics, best.config.data.val_split
    images = f"{metrics.images} image{'s' * (metrics.images != 1)}"
    sections = [
        result_section(metrics, [f"The checkpoint is the best of the run, from step {best.step}."]),
        training_section(out, best.config),
        *calibration_sections(metrics),
        confusion_section(metrics),
        images_section(
            evaluation,
            lambda image: predictor.predict(image).label,
            spec,
            spec.pairs(root, split),
            reporter=reporter,
        ),
        _use_section(out),
        *_origin_sections(best.config, spec, predictor),
    ]
    report = out / REPORT_FILE
    write_report(
        report,
        title=f"{spec.name}: {best.config.model.head} on {best.config.model.backbone}",
        lead=(
            f"On {images} of the split {split!r}, the model reaches a mean IoU of "
            f"{percent(metrics.miou)} %; {percent(metrics.pixel_accuracy)} % of all pixels are "
            "right."
        ),
        classes=spec.classes,
        colours=spec.colours,
        sections=sections,
    )
    reporter.end()
    return report


def _measure(
    predictor: Predictor, config: RunConfig, spec: DatasetSpec, root: Path, reporter: Reporter
) -> Evaluation:
    multiple = 32 if spec.window is None else 1
    samples = evaluation_samples(spec, root, config.data, config.data.val_split, multiple=multiple)
    reporter.start("evaluating", len(samples))
    return evaluate(
        predictor.model,
        samples,
        spec.classes,
        ignore_index=spec.ignore_index,
        batch_size=config.train.validate_batch_size,
        window=spec.window,
        per_image=True,
        progress=reporter.advance,
    )


def result_section(
    metrics: Metrics,
    texts: list[str],
    baseline: Metrics | None = None,
    baseline_name: str = "baseline",
) -> Section:
    """mIoU, and the figures of every class.

    Args:
        metrics: What was measured.
        texts: What else to say of it.
        baseline: What to compare with.
        baseline_name: What that is.
    """
    boundary = percent(metrics.mean_boundary_iou)
    lines = [
        f"mIoU {percent(metrics.miou)} %, pixel accuracy {percent(metrics.pixel_accuracy)} %, "
        f"mean class accuracy {percent(metrics.mean_accuracy)} %, "
        f"mean Dice {percent(metrics.mean_dice)} %, "
        f"frequency-weighted IoU {percent(metrics.fw_iou)} %"
        + ("." if metrics.boundary is None else f", boundary IoU {boundary} %.")
    ]
    if metrics.intervals:
        within = interval_text(metrics.intervals["miou"])
        lines.append(
            f"Were the images drawn anew, 95 % of such sets would have a mIoU of {within} %: see "
            "the intervals in the table."
        )
    absent = int(np.isnan(metrics.iou).sum())
    if absent:
        lines.append(
            f"{absent} of {len(metrics.classes)} classes are neither labelled nor predicted in "
            "these images; they have no figures and are left out of the means."
        )
    return Section(
        "What it reached", [*lines, *texts], [class_table(metrics, baseline, baseline_name)]
    )


def training_section(
    out: Path,
    config: RunConfig,
    baseline: float | None = None,
    baseline_name: str = "baseline",
    beside: Path | None = None,
) -> Section:
    """The curve and the facts of a run, over all its sittings.

    Args:
        out: Its folder.
        config: Its settings.
        baseline: mIoU to compare with.
        baseline_name: What that is of.
        beside: Also write the curve there.
    """
    rows, validations = (
        read_log(out / name) if (out / name).is_file() else []
        for name in (LOG_FILE, VALIDATION_FILE)
    )
    if not rows:
        return Section("Training", [f"There is no {LOG_FILE} with steps in it."])
    last = rows[-1]
    facts = {
        "steps": f"{last['step']:.0f} of {config.train.steps}, {config.train.batch_size} images in "
        "each",
        "times that the data was seen": f"{last['epoch']:.3g}",
        "time, over all sittings": f"{duration(last['seconds'])}, validation left out",
        "images per second": f"{np.median([row['images_per_second'] for row in rows]):.3g}",
    }
    waits = [row["wait"] * row.get("seconds", 0.0) for row in _since_the_row_before(rows)]
    if waits and last["seconds"]:
        facts["of the time waiting for data"] = f"{percent(sum(waits) / last['seconds'])} %"
    memory = [row["memory_gib"] for row in rows if row.get("memory_gib", 0.0) > 0]
    if memory:
        facts["most memory"] = f"{max(memory):.1f} GiB"
    facts |= {
        "learning rate": f"{config.optim.lr:g}, heads x{config.optim.head_lr_multiplier:g}",
        "precision": config.train.precision,
        "seed": str(config.train.seed),
    }
    curve = plot(
        training_curve(rows, validations, baseline, baseline_name),
        "Loss of each step (grey) and its running mean; validation mIoU",
        beside=beside,
    )
    return Section("Training", [], [curve, facts_table(facts)])


def _since_the_row_before(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows that know how long they waited, with the time of their own step alone."""
    before = [0.0, *(row["seconds"] for row in rows)]
    return [
        {**row, "seconds": row["seconds"] - start}
        for row, start in zip(rows, before, strict=False)
        if not np.isnan(row.get("wait", np.nan))
    ]


def facts_table(facts: Mapping[str, object]) -> Table:
    """Names and values, without a heading."""
    return Table(["", ""], [[name, str(value)] for name, value in facts.items()], words=2)


def calibration_sections(metrics: Metrics) -> list[Section]:
    """Whether the model is right as often as it is sure; nothing where that was not measured."""
    if metrics.calibration is None:
        return []
    pixels, accuracy, confidence = reliability(metrics.calibration)
    sure = float(np.nansum(pixels * confidence) / max(int(pixels.sum()), 1))
    right = float(np.nansum(pixels * accuracy) / max(int(pixels.sum()), 1))
    text = (
        f"The expected calibration error is {percent(metrics.ece)} %. On average the model is "
        f"{percent(sure)} % sure of a pixel's class; {percent(right)} % of the pixels are right."
    )
    caption = "Of the pixels of each confidence, how many are right; how many pixels have it"
    return [Section("How sure it is", [text], [plot(reliability_plot(metrics), caption)])]


def confusion_section(metrics: Metrics, beside: Path | None = None) -> Section:
    """Which classes are taken for which; the plot also goes `beside`."""
    caption = "Of each class's labelled pixels, the per cent taken for each class"
    if len(metrics.classes) > NAMED_CLASSES:
        caption += f"; the {NAMED_CLASSES} classes with the most mistakes"
    blocks = [plot(confusion_plot(metrics), caption, beside=beside), confusion_table(metrics)]
    return Section("What is taken for what", [], blocks)


def images_section(
    evaluation: Evaluation,
    predict: Callable[[np.ndarray], np.ndarray],
    spec: DatasetSpec,
    pairs: list[Pair],
    *,
    describe: Callable[[str], str] = str,
    beside: Callable[[str, str], Path] | None = None,
    reporter: Reporter | None = None,
) -> Section:
    """The best and the worst images, predicted again.

    Args:
        evaluation: With each image's mIoU; without, the first images of the split are shown.
        predict: The label map of an image as its file holds it.
        spec: Classes' colours, and what is ignored.
        pairs: Of the split that was measured.
        describe: An image's name as readers know it.
        beside: Kind ("best", "worst") and name -> where to write the picture too.
        reporter: Told of every image.
    """
    by_name = {pair.name: pair for pair in pairs}
    ranking = [row for row in evaluation.per_image if row[0] in by_name]
    chosen = _best_and_worst(ranking, by_name)
    texts = [] if ranking else ["No image has a pixel that counts; these are the first."]
    if not ranking:
        chosen = [("first", pair.name, float("nan")) for pair in pairs[: IMAGES_SHOWN // 2]]
    reporter = reporter or Silent()
    reporter.start("drawing images", len(chosen))
    blocks: list[Table | Picture | Code] = []
    for kind, name, miou in chosen:
        image, label = read_pair(by_name[name], spec)
        prediction = predict(image)
        pixels = comparison(
            image, label, prediction, spec.colours, spec.ignore_index, max_size=SIZE_SHOWN
        )
        present = np.union1d(np.unique(label), np.unique(prediction))
        blocks.append(
            picture(
                pixels,
                f"{kind}: {describe(name)}, mIoU {percent(miou)} %. "
                "Picture, truth, prediction, errors in red",
                beside=None if beside is None else beside(kind, name),
                legend=tuple(int(i) for i in present if i < spec.num_classes),
            )
        )
        reporter.advance(1)
    if len(ranking) > 2 * IMAGES_SHOWN:
        rows = [[describe(name), percent(miou)] for name, miou in ranking[:IMAGES_NAMED]]
        named = f"the worst {IMAGES_NAMED} of" if len(ranking) > IMAGES_NAMED else "all"
        blocks.append(Table([f"{named} {len(ranking)} images, worst first", "mIoU %"], rows))
    return Section("The best and the worst images" if ranking else "Images", texts, blocks)


def _best_and_worst(
    ranking: list[tuple[str, float]], pairs: Mapping[str, Pair]
) -> list[tuple[str, str, float]]:
    """Kind, name and mIoU of the images to show: the more, the smaller they are."""
    if not ranking:
        return []
    pixels = np.prod([image_size(pairs[name].image) for name, _ in (ranking[0], ranking[-1])], 1)
    most = int(PIXELS_SHOWN / (2 * max(1.0, float(pixels.mean()))))
    count = min(max(most, 1), IMAGES_SHOWN, (len(ranking) + 1) // 2)
    best = [("best", *row) for row in reversed(ranking[-count:])]
    return best + [("worst", *row) for row in ranking[: min(count, len(ranking) // 2)]]


def _use_section(out: Path) -> Section:
    folder = shlex.quote(str(out))
    commands = [
        f"ccsnet predict {folder} photo.jpg --save overlay",
        f"ccsnet evaluate {folder}",
        "",
        "# in Python",
        "import ccsnet",
        f"prediction = ccsnet.load({str(out)!r}).predict('photo.jpg')",
    ]
    return Section(
        "Use it",
        ["A photo's classes as an overlay; the figures above once more; the same in Python:"],
        [Code("\n".join(commands))],
    )


def _origin_sections(config: RunConfig, spec: DatasetSpec, predictor: Predictor) -> list[Section]:
    model = predictor.model
    sizes = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in (("backbone", model.backbone), ("head", model.head))
    }
    facts = {
        "backbone": f"{config.model.backbone}, weights {config.model.backbone_weights}",
        "head": config.model.head,
        "parameters": ", ".join(f"{part} {n / 1e6:.2f} M" for part, n in sizes.items()),
        "classes": spec.num_classes,
        "bands of an image": spec.channels,
        "data": f"{spec.name}. {spec.licence}",
    }
    return [
        Section("Model and data", [], [facts_table(facts)]),
        Section("How this was made", [origin_text()], [settings_table(config)]),
    ]


def origin_text() -> str:
    """Versions, machine and day."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("timm", "numpy"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"ccsnet {__version__}, torch {torch.__version__}, {packages}, "
        f"Python {platform.python_version()}; {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors{gpu}; {time.strftime('%Y-%m-%d')}."
    )


def settings_table(config: RunConfig) -> Table:
    """Every setting of a run."""
    rows = [[name, str(value)] for name, value in flat_settings(config).items()]
    return Table(["setting", "value"], rows, words=2)

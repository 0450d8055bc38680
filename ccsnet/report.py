"""Numbers, plots and pictures as one HTML file that opens anywhere; the pictures beside it too."""

import base64
import importlib.resources
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from ccsnet.data.images import write_png
from ccsnet.datasets._spec import Colour
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.metrics import Metrics, percent, shown_columns
from ccsnet.scores import Interval, reliability

NAMED_CLASSES = 30  # More than these have no room for names beside a confusion matrix.


@dataclass(frozen=True)
class Table:
    """A table; the last row is set in bold when it is a total."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False
    words: int = 1
    """So many columns, from the left, hold words and not numbers."""


@dataclass(frozen=True)
class Picture:
    """A picture, carried inside the page."""

    source: str
    """A data URL."""
    caption: str
    legend: bool | tuple[int, ...] = False
    """Whether the classes' colours are explained below it; a tuple: those of some classes."""


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    code: str


@dataclass
class Section:
    """A heading, paragraphs, then tables, pictures and code in order."""

    title: str
    texts: list[str] = field(default_factory=list)
    blocks: list[Table | Picture | Code] = field(default_factory=list)


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    classes: Sequence[str],
    colours: Sequence[Colour],
    sections: Sequence[Section],
) -> None:
    """Write the page: one file without links to others.

    Args:
        path: Where to.
        title: Heading.
        lead: What was found, in a sentence or two.
        classes: Names, for legends.
        colours: Their colours.
        sections: The content.
    """
    text = importlib.resources.files("ccsnet").joinpath("report.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True).from_string(text)
    page = template.render(
        title=title,
        lead=lead,
        classes=[
            (name, f"rgb{tuple(colour)}") for name, colour in zip(classes, colours, strict=True)
        ],
        sections=sections,
    )
    with atomic_path(path) as aside:
        aside.write_text(page, "utf-8", "backslashreplace")  # Names of files need not be text.


def picture(
    pixels: UInt8[np.ndarray, "H W 3"],
    caption: str,
    *,
    beside: Path | None = None,
    max_width: int = 1600,
    legend: bool | tuple[int, ...] = False,
) -> Picture:
    """An image for the page, no wider than `max_width`.

    Args:
        pixels: RGB.
        caption: What it shows.
        beside: Also write it there as a PNG, at full size.
        max_width: In pixels, inside the page.
        legend: Explain the classes' colours below it, or those of some.
    """
    if beside is not None:
        write_png(beside, pixels)
    if pixels.shape[1] > max_width:
        height = round(pixels.shape[0] * max_width / pixels.shape[1])
        pixels = cv2.resize(pixels, (max_width, height), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV encodes any 8-bit image"
    return Picture(_data_url(data.tobytes(), "image/png"), caption, legend)


def plot(figure: Figure, caption: str, *, beside: Path | None = None) -> Picture:
    """A matplotlib figure for the page, and as a PNG beside it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", facecolor="white")
    if beside is not None:
        with atomic_path(beside) as aside:
            aside.write_bytes(buffer.getvalue())
    return Picture(_data_url(buffer.getvalue(), "image/png"), caption)


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def training_curve(
    rows: Sequence[Mapping[str, float]],
    validations: Sequence[Mapping[str, float]],
    baseline: float | None = None,
    baseline_name: str = "baseline",
) -> Figure:
    """Loss by step, and validation mIoU with the baseline's as a line.

    Args:
        rows: Of log.csv, as `read_log` returns them.
        validations: Of validation.csv.
        baseline: mIoU to compare with.
        baseline_name: What it is of.
    """
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    losses = np.array([row["loss"] for row in rows])
    width = max(1, len(losses) // 50)
    kernel = np.ones(width) / width
    left.plot(steps, losses, color="#9ab", linewidth=0.7)
    smooth = np.convolve(losses, kernel, "valid")
    left.plot(steps[width - 1 :], smooth, color="#036", linewidth=1.6)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    measured = [(row["step"], 100 * row["miou"]) for row in validations]
    if measured:
        right.plot(*zip(*measured, strict=True), marker="o", color="#036", label="this run")
    if baseline is not None:
        right.axhline(100 * baseline, color="#b40", linestyle="--", label=baseline_name)
    right.set(xlabel="step", ylabel="validation mIoU (%)", ylim=(0, None))
    if right.has_data():
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_plot(metrics: Metrics) -> Figure:
    """What the labelled pixels of each class were taken for, in per cent.

    Of many classes, those with the most pixels that were taken wrongly for each other.
    """
    confusion = metrics.confusion.astype(float)
    share = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    shown = np.arange(len(metrics.classes))
    if len(shown) > NAMED_CLASSES:
        wrong = confusion * ~np.eye(len(shown), dtype=bool)
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:NAMED_CLASSES])
    share = share[np.ix_(shown, shown)]
    names = [metrics.classes[i] for i in shown.tolist()]
    side = min(12.0, 2.5 + 0.5 * len(names))
    figure = Figure(figsize=(side, side))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    # A dollar sign would begin a formula.
    plain = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), plain, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), plain)
    axes.set(xlabel="predicted", ylabel="labelled")
    if len(names) <= 20:
        for i, j in np.ndindex(share.shape):
            colour = "white" if share[i, j] > 55 else "black"
            axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", color=colour, size=8)
    return figure


def confusion_table(metrics: Metrics, num: int = 10) -> Table:
    """The mistakes that took the most pixels."""
    wrong = metrics.confusion * ~np.eye(len(metrics.classes), dtype=bool)
    total, of_class = max(int(metrics.confusion.sum()), 1), metrics.confusion.sum(1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:num]:
        i, j = divmod(int(place), len(metrics.classes))
        if wrong[i, j]:
            shares = (percent(wrong[i, j] / of_class[i]), percent(wrong[i, j] / total))
            rows.append([metrics.classes[i], metrics.classes[j], *shares])
    head = ["labelled", "taken for", "of the class's pixels %", "of all pixels %"]
    return Table(head, rows, words=2)


def reliability_plot(metrics: Metrics) -> Figure:
    """How often pixels of each confidence are right, and how many pixels have it, in per cent.

    Raises:
        InputError: Calibration was not measured.

    Source: the reliability diagram of Guo et al., ICML 2017, figure 1.
    """
    if metrics.calibration is None:
        raise InputError("Calibration was not measured, so there is no diagram of it.")
    pixels, accuracy, _ = reliability(metrics.calibration)
    num = len(pixels)
    middles = 100 * (np.arange(num) + 0.5) / num
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    left.bar(middles, 100 * accuracy, width=92 / num, color="#69c")
    left.plot([0, 100], [0, 100], color="#b40", linestyle="--", label="as sure as right")
    left.set(xlabel="confidence (%)", ylabel="pixels that are right (%)")
    left.set(xlim=(0, 100), ylim=(0, 100))
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    right.bar(middles, 100 * pixels / max(int(pixels.sum()), 1), width=92 / num, color="#9ab")
    right.set(xlabel="confidence (%)", ylabel="share of the pixels (%)", xlim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def class_table(
    metrics: Metrics, baseline: Metrics | None = None, baseline_name: str = "baseline"
) -> Table:
    """Every class's figures in per cent, and where it is known the interval of its IoU.

    Args:
        metrics: What was measured.
        baseline: Its IoU stands beside.
        baseline_name: What that is.
    """
    labelled = metrics.confusion.sum(1) / max(int(metrics.confusion.sum()), 1)
    columns = {"class": [*metrics.classes, "mean"]}
    columns["share of pixels %"] = [*map(percent, labelled.tolist()), ""]
    for heading, values in shown_columns(metrics).items():
        columns[f"{heading} %"] = list(map(percent, values))
        if heading == "IoU" and metrics.intervals:
            low, high = map(np.atleast_1d, metrics.intervals["iou"])
            found = [*map(Interval, low, high), metrics.intervals["miou"]]
            columns["95 % interval"] = list(map(interval_text, found))
    if baseline is not None:
        values = [*baseline.iou.tolist(), baseline.miou]
        columns[f"IoU % of {baseline_name}"] = list(map(percent, values))
    return Table(list(columns), list(zip(*columns.values(), strict=True)), total=True)


def interval_text(interval: Interval) -> str:
    """An interval of one figure in per cent."""
    low, high = (percent(float(end)) for end in interval)
    return "-" if low == "-" else f"{low} to {high}"

"""A comparison as JSON, as sentences, and as one HTML page with the images that differ most."""

import importlib.resources
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
from jaxtyping import Integer, Num, UInt8

from ccsnet.compare import ClassRow, Comparison, Difference, ImageRow
from ccsnet.compare_causes import CauseRow
from ccsnet.data.opening import read_pair
from ccsnet.datasets._spec import Colour, DatasetSpec, Pair
from ccsnet.draw import colourise, rgb_of
from ccsnet.files import atomic_path
from ccsnet.metrics import percent
from ccsnet.pictures import fitting_size
from ccsnet.progress import Reporter, Silent
from ccsnet.report import picture
from ccsnet.run_report import origin_text
from ccsnet.trackers import flat_settings

SIZE_SHOWN = (480, 640)  # Most height and width of a picture.
NAMED = 3  # Classes, or mistakes, of which one sentence speaks.
CLASSES_SHOWN = 12  # Of those that lose, with what their pixels were given to.

BOTH_RIGHT, RUN_ERRS, BASELINE_ERRS, BOTH_ERR, NOT_COUNTED = range(5)
WHITE: Colour = (255, 255, 255)
MARKS: tuple[Colour, ...] = ((228, 228, 228), (213, 94, 0), (0, 114, 178), (110, 110, 110), WHITE)
"""Paint of what is right and wrong, the same to the colour-blind.

Source: vermillion and blue of Okabe and Ito, Color Universal Design, 2008.
"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was compared, and on which images."""

    run: str
    """The name that readers know the run by."""
    baseline: str
    dataset: str
    split: str
    facts: Mapping[str, object]
    """Where all of it came from."""


class Card(NamedTuple):
    """One image of the page."""

    row: ImageRow
    mistakes: str
    pictures: Sequence[Any]


def comparison_json(comparison: Comparison, subject: Subject) -> str:
    """All figures, as fractions and pixels; what does not exist is null."""
    rows = {
        "classes": comparison.class_rows(),
        "causes": comparison.cause_rows(),
        "images": comparison.image_rows(),
    }
    values = {
        "run": subject.run,
        "baseline": subject.baseline,
        "dataset": subject.dataset,
        "split": subject.split,
        "num_images": len(comparison.images),
        "overall": {name: one._asdict() for name, one in comparison.overall().items()},
        **{name: [row._asdict() for row in found] for name, found in rows.items()},
        "confusion": dict(zip(("run", "baseline"), comparison.confusions.tolist(), strict=True)),
        "facts": {name: str(value) for name, value in flat_settings(subject.facts).items()},
    }
    return json.dumps(_plain(values), indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Numbers of six digits, None for NaN."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def points(value: float) -> str:
    """A difference of fractions in hundredths, with its sign; "-" where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def fine_points(value: float) -> str:
    """The same of a difference that may be far below a hundredth."""
    return f"{100 * value:+.2g}"


def within(low: float, high: float) -> str:
    """An interval of a difference in hundredths."""
    return "-" if math.isnan(low) else f"{points(low)} to {points(high)}"


def lead(comparison: Comparison, subject: Subject) -> str:
    """What was found, in a sentence."""
    num, found = len(comparison.images), comparison.overall()["miou"]
    return (
        f"On {num} image{'s' * (num != 1)} of the split {subject.split!r} of {subject.dataset}, "
        f"{subject.run} reaches a mIoU of {percent(found.run)} %, {subject.baseline} "
        f"{percent(found.baseline)} %: {points(found.difference)} points "
        f"({within(found.low, found.high)})."
    )


def times(value: float, low: float, high: float) -> str:
    """How many times as frequent, and the interval of that."""
    return "-" if math.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"


CAVEAT = (
    "In brackets: the interval that holds 95 % of the differences, were the images drawn anew. "
    "It knows nothing of other seeds: compare two trainings of one model to see what those make."
)


def verdict(row: ClassRow | Difference) -> str:
    """Whether a difference is more than other images would make of it."""
    if math.isnan(row.difference) or row.low <= 0 <= row.high:
        return "" if math.isnan(row.difference) else "may be chance"
    return "loses" if row.difference < 0 else "gains"


def shares_text(pixels: Mapping[str, int], num: int = NAMED) -> str:
    """The classes with the most of some pixels, and their share of these; no less than 1 %."""
    total = sum(pixels.values())
    named = [(name, n) for name, n in list(pixels.items())[:num] if 100 * n >= total]
    return ", ".join(f"{name} {n / total:.0%}" for name, n in named) or "-"


def cause_texts(rows: Sequence[CauseRow], comparison: Comparison) -> list[str]:
    """What the shares of the causes say, in sentences."""
    lost, gained, everywhere = comparison.causes.by_class[0].sum(1).tolist()
    if not lost:
        return ["No pixel is lost: where the baseline is right, so is the run."]
    texts = [
        f"{percent(lost / everywhere)} % of the pixels are lost: only the baseline has them right. "
        f"{percent(gained / everywhere)} % are gained: only the run has them right."
    ]
    by_name = {row.name: row for row in rows}
    if "coarse_right" in by_name:
        refused, right = by_name.get("not_relevant"), by_name["coarse_right"]
        chance = (
            "Every class is relevant everywhere, so the choice took nothing away."
            if refused is None
            else f"For {percent(refused.lost)} % of the lost pixels the choice left out their "
            "class, so that they could not read from its centre."
        )
        texts.append(
            f"{chance} In {percent(right.lost)} % the coarse prediction was right, and what comes "
            "after it went wrong."
        )
    sure = sorted((row for row in rows if row.low > 1), key=lambda row: -row.lift)
    texts += [
        f"Most over-represented: {row.meaning} ({row.lift:.1f} times as frequent among the lost "
        "pixels as everywhere)."
        for row in sure[:1]
    ]
    telling = [row for row in rows if row.versus_low > 1]
    if not telling:
        return [*texts, "Nothing is surely more frequent among the lost pixels than the gained."]
    most = max(telling, key=lambda row: row.lost - row.gained)
    texts.append(
        f"What tells the lost from the gained most: {most.meaning} ({percent(most.lost)} % of the "
        f"lost, {percent(most.gained)} % of the gained)."
    )
    return texts


def write_page(
    path: Path,
    comparison: Comparison,
    subject: Subject,
    spec: DatasetSpec,
    *,
    pairs: Sequence[Pair],
    predict: tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]],
    num_images: int = 6,
    reporter: Reporter | None = None,
) -> None:
    """Write the page: one file without links to others; one that is there is replaced.

    Args:
        path: Where to.
        comparison: What was counted.
        subject: What was compared.
        spec: Classes' colours, and what is ignored.
        pairs: The images, of which those that differ most are shown.
        predict: The label map of an image as its file holds it, by the run and by the baseline.
        num_images: How many images that lose most are shown; of those that gain most, half.
        reporter: Told of every image that is drawn.

    Raises:
        InputError: An image cannot be read.
        OSError: The file cannot be written.
    """
    rows = comparison.image_rows()
    losing = [row for row in rows if row.cost > 0][:num_images]
    gaining = [row for row in reversed(rows) if row.cost < 0][: (num_images + 1) // 2]
    reporter = reporter or Silent()
    reporter.start("drawing images", len(losing) + len(gaining))
    by_name = {pair.name: pair for pair in pairs}
    present: set[int] = set()

    def card(row: ImageRow) -> Card:
        image, label = read_pair(by_name[row.name], spec)
        run, baseline = (one(image) for one in predict)
        for part in (label, run, baseline):
            present.update(i for i in np.unique(part).tolist() if i < spec.num_classes)
        reporter.advance(1)
        return Card(
            row,
            _mistakes(label, run, baseline, spec),
            _pictures(row, image, label, run, baseline, spec, subject),
        )

    cards = [[card(row) for row in part] for part in (losing, gaining)]
    causes, classes = comparison.cause_rows(), comparison.class_rows()
    lost = [row for row in classes if row.difference < 0]
    text = importlib.resources.files("ccsnet").joinpath("compare.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {
        "percent": percent,
        "points": points,
        "fine": fine_points,
        "shares": shares_text,
    }
    environment.globals |= {"within": within, "verdict": verdict, "times": times}
    page = environment.from_string(text).render(
        subject=subject,
        lead=lead(comparison, subject),
        caveat=CAVEAT,
        overall=comparison.overall(),
        classes=classes,
        widest=max((abs(r.difference) for r in classes if r.difference == r.difference), default=1),
        losing=lost[:CLASSES_SHOWN],
        num_losing=len(lost),
        causes=causes,
        cause_texts=cause_texts(causes, comparison),
        cause_classes=[row for row in lost[:CLASSES_SHOWN] if row.lost],
        cards=cards,
        num_ranked=len(rows),
        colours={name: _css(c) for name, c in zip(spec.classes, spec.colours, strict=True)},
        legend=[spec.classes[i] for i in sorted(present)],
        marks=list(zip(_mark_names(subject), map(_css, MARKS), strict=True)),
        origin=origin_text(),
        facts={name: str(value) for name, value in flat_settings(subject.facts).items()},
    )
    with atomic_path(path) as aside:
        aside.write_text(page, "utf-8", "backslashreplace")  # Names of files need not be text.


def _mark_names(subject: Subject) -> tuple[str, ...]:
    return (
        "both right",
        f"only {subject.run} errs",
        f"only {subject.baseline} errs",
        "both err",
        "not counted",
    )


def _css(colour: Colour) -> str:
    return f"rgb{tuple(colour)}"


def difference_map(
    label: Integer[np.ndarray, "H W"],
    run: Integer[np.ndarray, "H W"],
    baseline: Integer[np.ndarray, "H W"],
    ignore_index: int = 255,
) -> UInt8[np.ndarray, "H W 3"]:
    """Where which of two predictions is right, in the colours of `MARKS`."""
    kind = (run != label) * RUN_ERRS + (baseline != label) * BASELINE_ERRS
    kind[label == ignore_index] = NOT_COUNTED
    return np.array(MARKS, np.uint8)[kind]


def _pictures(
    row: ImageRow,
    image: Num[np.ndarray, "H W C"],
    label: Integer[np.ndarray, "H W"],
    run: Integer[np.ndarray, "H W"],
    baseline: Integer[np.ndarray, "H W"],
    spec: DatasetSpec,
    subject: Subject,
) -> list[Any]:
    size = fitting_size(label.shape, SIZE_SHOWN)
    small = [
        cv2.resize(part.astype(np.uint16), size[::-1], interpolation=cv2.INTER_NEAREST)
        for part in (label, baseline, run)
    ]
    label, baseline, run = small
    marked = difference_map(label, run, baseline, spec.ignore_index)
    named = ", ".join(spec.classes[i] for i in np.unique(label).tolist() if i < spec.num_classes)
    described = (
        (rgb_of(image, size), "Image", f"Image {row.name}"),
        (colourise(label, spec.colours), "Label", f"Label of {row.name}: {named}"),
        (colourise(baseline, spec.colours), f"{subject.baseline} (baseline)", ""),
        (colourise(run, spec.colours), subject.run, ""),
        (
            marked,
            "Who errs",
            f"Who errs in {row.name}: {subject.run} alone in {percent(row.lost)} % of the pixels, "
            f"{subject.baseline} alone in {percent(row.gained)} %",
        ),
    )
    return [
        (caption, alt or f"{row.name} as {caption} predicts it", picture(pixels, caption).source)
        for pixels, caption, alt in described
    ]


def _mistakes(
    label: Integer[np.ndarray, "H W"],
    run: Integer[np.ndarray, "H W"],
    baseline: Integer[np.ndarray, "H W"],
    spec: DatasetSpec,
) -> str:
    """What most of an image's lost pixels were taken for."""
    lost = (baseline == label) & (run != label)  # What is ignored is never predicted.
    num = spec.num_classes
    counts = np.bincount(label[lost].astype(np.int64) * num + run[lost], minlength=num * num)
    order = [int(i) for i in np.argsort(-counts, kind="stable")[:NAMED] if counts[i]]
    return ", ".join(
        f"{spec.classes[i // num]} taken for {spec.classes[i % num]} ({counts[i]:,} pixels)"
        for i in order
    )

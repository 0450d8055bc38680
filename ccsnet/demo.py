"""The demo: a CCSNet learns the land cover of the Earth and draws its map, in minutes."""

import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ccsnet.checkpoint import LAST, read_checkpoint
from ccsnet.config import RunConfig
from ccsnet.data.images import read_image, read_label, write_bytes, write_palette_png
from ccsnet.data.loading import evaluation_samples
from ccsnet.data.opening import open_dataset
from ccsnet.datasets import earth
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.draw import colourise, legend, overlay
from ccsnet.errors import InputError
from ccsnet.evaluate import Evaluation, evaluate
from ccsnet.heads.ccs import CCSHead, relevant_classes
from ccsnet.metrics import ConfusionMatrix, Metrics, percent
from ccsnet.pictures import mark, side_by_side
from ccsnet.predict import PredictConfig, Prediction, Predictor, load
from ccsnet.progress import Reporter, Silent
from ccsnet.recipes import recipe
from ccsnet.report import Section, Table, picture, write_report
from ccsnet.run_report import (
    confusion_section,
    facts_table,
    images_section,
    origin_text,
    result_section,
    settings_table,
    training_section,
)
from ccsnet.train import train

WORLD = PredictConfig(window=512, overlap=0.25)
BASELINE_PIXELS = 400_000
BASELINE_NAME = "colour alone"
RESULT_TEXTS = [
    "The last column is the colour-only baseline: a quadratic classifier of single pixels, taught "
    "and measured on the same tiles. The difference is what the network adds. The checkpoint is "
    "the best of the run's validations, which are on these tiles too."
]
POSTER_WIDTH = 1400
PLACE_SIDE = 256  # Pixels around a place; 17 degrees.


def run_demo(out: Path, *, steps: int | None = None, reporter: Reporter | None = None) -> Path:
    """Prepare, train, evaluate, label the whole Earth, and write the report.

    Args:
        out: The run's folder. A run in it is finished if it was interrupted, else used.
        steps: Optimizer steps, if not the recipe's.
        reporter: Who is told how it goes.

    Returns:
        The report's file.

    Raises:
        InputError: A package that the demo needs is not installed, or the folder holds another run.
    """
    reporter = reporter or Silent()
    started = time.perf_counter()
    config = recipe("earth")
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    spec, root = open_dataset(config.data)
    baseline = colour_baseline(spec, root, reporter)
    reporter.note(f"Colour alone: mIoU {percent(baseline.miou)} %")

    _train(config, out, reporter)
    predictor = load(out)
    samples = evaluation_samples(spec, root, config.data, "val")
    reporter.start("evaluating", len(samples))
    measured = evaluate(
        predictor.model, samples, spec.classes, per_image=True, progress=reporter.advance
    )
    reporter.note(f"CCSNet: mIoU {percent(measured.metrics.miou)} %")

    world = _label_world(predictor, reporter)
    reporter.start("writing the report", 1)
    report = _write(out, predictor, spec, root, measured, baseline, world, started)
    reporter.advance(1)
    reporter.end()
    return report


def _train(config: RunConfig, out: Path, reporter: Reporter) -> None:
    resume = (out / LAST).is_file()
    if resume:
        saved = read_checkpoint(out / LAST)
        if saved.config.data.dataset != "earth":
            raise InputError(f"{out} holds a run on other data. Choose another --out.")
        config = replace(saved.config, train=replace(saved.config.train, steps=config.train.steps))
        if saved.step >= config.train.steps:
            reporter.note(f"Using the model in {out}; remove that folder to train anew.")
            return
        reporter.note(f"Going on from step {saved.step} of {config.train.steps}.")
    train(config, out, resume=resume, reporter=reporter)


def colour_baseline(spec: DatasetSpec, root: Path, reporter: Reporter) -> Metrics:
    """What colour alone can tell: a quadratic classifier of single pixels, on the same tiles.

    Source: quadratic discriminant analysis, one Gaussian of the RGB values per class.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    except ModuleNotFoundError as error:
        raise InputError(
            "The demo's baseline needs scikit-learn: pip install 'ccsnet[demo]'"
        ) from error
    training, validation = spec.pairs(root, "train"), spec.pairs(root, "val")
    reporter.start("colour baseline", len(training) + len(validation))
    rng = np.random.default_rng(0)
    per_tile = BASELINE_PIXELS // len(training)
    colours, labels = [], []
    for pair in training:
        image, label = _read(pair, spec)
        chosen = rng.choice(label.size, min(per_tile, label.size), replace=False)
        colours.append(image.reshape(-1, 3)[chosen])
        labels.append(label.ravel()[chosen])
        reporter.advance(1)
    pixels, targets = np.concatenate(colours), np.concatenate(labels)
    known = targets != spec.ignore_index
    classifier = QuadraticDiscriminantAnalysis()
    classifier.fit(pixels[known].astype(float), targets[known])
    matrix = ConfusionMatrix(spec.num_classes, spec.ignore_index)
    for pair in validation:
        image, label = _read(pair, spec)
        found = classifier.predict(image.reshape(-1, 3).astype(float)).reshape(label.shape)
        matrix.update(torch.from_numpy(label.astype(int)), torch.from_numpy(found.astype(int)))
        reporter.advance(1)
    reporter.end()
    return Metrics(classes=spec.classes, confusion=matrix.matrix(), images=len(validation))


def _read(pair: Pair, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
    assert pair.label is not None, "the tiles of the demo all have labels"
    return read_image(pair.image), read_label(pair.label, spec)


def _label_world(predictor: Predictor, reporter: Reporter) -> Prediction:
    done_before = 0

    def progress(done: int, total: int) -> None:
        nonlocal done_before
        if done_before == 0:
            reporter.start("labelling the Earth", total)
        reporter.advance(done - done_before)
        done_before = done

    return predictor.predict(earth.world_image(), WORLD, progress)


def _write(
    out: Path,
    predictor: Predictor,
    spec: DatasetSpec,
    root: Path,
    measured: Evaluation,
    baseline: Metrics,
    world: Prediction,
    started: float,
) -> Path:
    write_palette_png(out / "world.png", world.label, spec.colours)
    write_bytes(out / "earth.jpg", _poster(world, spec))
    metrics = measured.metrics
    config = read_checkpoint(out).config
    gain = 100 * (metrics.miou - baseline.miou)
    ours, colour_alone = percent(metrics.miou), percent(baseline.miou)
    sections = [
        _world_section(world, spec),
        _data_section(spec, root),
        _model_section(predictor, out),
        training_section(out, config, baseline.miou, BASELINE_NAME, beside=out / "training.png"),
        result_section(metrics, RESULT_TEXTS, baseline, BASELINE_NAME),
        confusion_section(metrics, beside=out / "confusion.png"),
        images_section(
            measured,
            lambda image: predictor.predict(image).label,
            spec,
            spec.pairs(root, "val"),
            describe=_degrees,
            beside=lambda kind, name: out / f"tile_{kind}_{name}.png",
        ),
        _places_section(predictor, world, spec, out),
        _origin_section(config, started),
    ]
    report = out / "report.html"
    write_report(
        report,
        title="The land cover of the Earth, by CCSNet",
        lead=(
            f"On {metrics.images} tiles of the Earth that it never saw, the network reaches a mean "
            f"IoU of {ours} %, where colour alone reaches {colour_alone} %: "
            f"{abs(gain):.1f} points {'more' if gain >= 0 else 'less'}."
        ),
        classes=spec.classes,
        colours=spec.colours,
        sections=sections,
    )
    return report


def _poster(world: Prediction, spec: DatasetSpec) -> bytes:
    """The picture, the map and the legend, one above the other, as a JPEG."""
    size = (POSTER_WIDTH, POSTER_WIDTH // 2)
    painted = colourise(world.label, spec.colours)
    parts = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (world.image, painted)]
    names = legend(spec.classes, spec.colours, row_height=30, columns=4)
    strip = np.full((names.shape[0], POSTER_WIDTH, 3), 255, np.uint8)
    left = (POSTER_WIDTH - names.shape[1]) // 2
    strip[:, left : left + names.shape[1]] = names
    poster = cv2.cvtColor(np.concatenate([*parts, strip]), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", poster, (cv2.IMWRITE_JPEG_QUALITY, 88))[1].tobytes()


def _world_section(world: Prediction, spec: DatasetSpec) -> Section:
    return Section(
        "The map",
        [
            "Every pixel of a 5400 x 2700 picture of the Earth, labelled in overlapping windows. "
            "Three quarters of the tiles were seen in training; the figures below are of the "
            "other quarter alone. world.png beside this file is the map at full size."
        ],
        [
            picture(colourise(world.label, spec.colours), "The network's map", legend=True),
            picture(world.image, "The picture: NASA's Blue Marble", max_width=1000),
            Table(
                ["class", "share of the map's pixels %"],
                [[name, percent(share)] for name, share in world.area.items()],
            ),
        ],
    )


def _data_section(spec: DatasetSpec, root: Path) -> Section:
    image = earth.world_image() // 2
    label = colourise(earth.world_label(), spec.colours)
    rows = []
    for split, tint in (("train", (255, 255, 255)), ("val", (255, 60, 60))):
        pairs = spec.pairs(root, split)
        counts = np.zeros(spec.num_classes)
        for pair in pairs:
            _, one = _read(pair, spec)
            counts += np.bincount(one.ravel(), minlength=256)[: spec.num_classes]
            row, column = int(pair.name[1:3]) * earth.BLOCK, int(pair.name[4:6]) * earth.BLOCK
            tile = (slice(row, row + earth.BLOCK), slice(column, column + earth.BLOCK))
            image[tile] = image[tile] + np.array(tint, np.uint8) // 4
        rows.append([split, str(len(pairs)), *(percent(c / counts.sum()) for c in counts)])
    return Section(
        "The data",
        [
            "Labels are NASA's MODIS land cover of 2019, its 17 classes merged to the eight that "
            "colour can tell apart at 7 km per pixel; wetland and urban land, 0.3 % of all pixels, "
            "are left unlabelled. The map is split by blocks of 20 x 20 degrees, so that no "
            "validation tile is cut from a block seen in training. Tiles with more than 97 % water "
            "are left out.",
            "Image and labels do not agree everywhere: the ice shelves of Antarctica are white in "
            "the picture and water in the labels (1.4 % of all pixels).",
        ],
        [
            picture(label, "The labels", legend=True, max_width=1000),
            picture(image, "Blocks for training (light), for validation (red)", max_width=1000),
            Table(["split", "tiles", *(f"{name} %" for name in spec.classes)], rows),
        ],
    )


def _model_section(predictor: Predictor, out: Path) -> Section:
    config = read_checkpoint(out).config
    model = predictor.model
    parts = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in (("backbone", model.backbone), ("head", model.head))
    }
    side = 256
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    head = config.model.head_config
    rows = {
        "backbone": f"{config.model.backbone}, weights {config.model.backbone_weights}",
        "head": (
            f"{config.model.head}: k = {head.top_k} of {len(predictor.classes)} classes, "
            f"D = {head.dim}"
        ),
        "parameters": (
            f"backbone {parts['backbone'] / 1e6:.2f} M, head {parts['head'] / 1e6:.2f} M"
        ),
        "multiplications": f"{counter.get_total_flops() / 2e9:.2f} G at {side}x{side}",
    }
    return Section(
        "The model",
        [
            "A coarse prediction says which classes live where. The deepest features give every "
            "class one centre for the whole image. Then the pixels of every stage read from those "
            "centres, but only from the few classes that the coarse prediction finds likely at "
            "their place."
        ],
        [facts_table(rows)],
    )


def _degrees(tile: str) -> str:
    """Where a tile is, from its name."""
    north, west = 90 - 20 * int(tile[1:3]), 20 * int(tile[4:6]) - 180
    latitudes = f"{_latitude(north)} to {_latitude(north - 20)}"
    return f"{latitudes}, {_longitude(west)} to {_longitude(west + 20)}"


def _latitude(degrees: int) -> str:
    return f"{abs(degrees)}°{'N' if degrees > 0 else 'S' if degrees < 0 else ''}"


def _longitude(degrees: int) -> str:
    return f"{abs(degrees)}°{'E' if degrees > 0 else 'W' if degrees < 0 else ''}"


@torch.inference_mode()
def _places_section(
    predictor: Predictor, world: Prediction, spec: DatasetSpec, out: Path
) -> Section:
    """What the head found relevant at a few places."""
    head = predictor.model.head
    assert isinstance(head, CCSHead), "the demo trains a CCSNet"
    section = Section(
        "Which classes were relevant there",
        [
            "At the ring, the coarse prediction ranks the classes, and the place reads from the "
            f"centres of the best {head.top_k} alone. Beside them, what the network says in the "
            "end.",
        ],
    )
    half = PLACE_SIDE // 2
    truth = earth.world_label()
    device = next(predictor.model.parameters()).device
    for number, place in enumerate(earth.PLACES, start=1):
        top = min(max(place.row - half, 0), earth.HEIGHT - PLACE_SIDE)
        left = min(max(place.column - half, 0), earth.WIDTH - PLACE_SIDE)
        tile = (slice(top, top + PLACE_SIDE), slice(left, left + PLACE_SIDE))
        image = world.image[tile]
        row, column = place.row - top, place.column - left
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        output = predictor.model(pixels.to(device))
        assert output.coarse is not None, "a CCSNet makes a coarse prediction"
        at_coarse = (0, slice(None), row // 16, column // 16)
        coarse = output.coarse.softmax(1)[at_coarse].cpu()
        relevant = relevant_classes(output.coarse, head.top_k)[at_coarse].cpu()
        final = output.logits.softmax(1)[0, :, row // 4, column // 4].cpu()
        order = [i for i in coarse.argsort(descending=True).tolist() if relevant[i]]
        shown = [
            mark(image, row, column),
            colourise(truth[tile], spec.colours),
            mark(overlay(image, world.label[tile], spec.colours, 0.6), row, column),
        ]
        label = truth[place.row, place.column]
        section.blocks += [
            picture(
                side_by_side(shown),
                f"{place.name}. Picture, truth, prediction. Labelled "
                f"{spec.classes[label] if label < spec.num_classes else 'as no class'}",
                beside=out / f"place_{number}.png",
                legend=number == 1,
            ),
            Table(
                ["relevant class", "coarse prediction %", "final prediction %"],
                [
                    [spec.classes[i], percent(float(coarse[i])), percent(float(final[i]))]
                    for i in order
                ],
            ),
        ]
    return section


def _origin_section(config: RunConfig, started: float) -> Section:
    minutes = (time.perf_counter() - started) / 60
    return Section(
        "How this was made",
        [f"ccsnet demo; {origin_text()} This call took {minutes:.1f} minutes."],
        [settings_table(config)],
    )

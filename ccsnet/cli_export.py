"""`ccsnet export`, and `ccsnet predict --runtime`, which needs no torch. This module prints."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ccsnet.arguments import before_options, parse, positional
from ccsnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """What to write."""

    to: Literal["onnx", "torchscript", "torch-export", "openvino"] = "onnx"
    """onnx and openvino run without torch."""
    out: Path | None = None
    """The file; none: model.onnx and so on beside the checkpoint. One that is there is replaced."""
    label_map: bool = False
    """The network gives label maps at its input's size instead of logits."""
    size: tuple[int, int] | None = None
    """The only height and width that it takes, multiples of 32; none: any."""
    images: Path | None = None
    """Image or folder to compare with the checkpoint on; none: the run's validation images."""
    int8: Path | None = None
    """onnx: also write NAME-int8.onnx, its ranges from the images of this folder."""


def export(arguments: list[str]) -> int:
    """Write a trained model for other programs: ccsnet export RUN [--to onnx] [--out FILE] [...].

    RUN is a run's folder (its best checkpoint) or a .safetensors file. The file takes raw pixel
    values. It is kept only if it labels images as the checkpoint does. `ccsnet predict --runtime
    onnxruntime FILE IMAGES...` uses it.
    """
    from ccsnet.checkpoint import read_checkpoint
    from ccsnet.export import ExportConfig
    from ccsnet.export import export as write
    from ccsnet.export_forms import FORMATS
    from ccsnet.terminal import make_console

    run_name, arguments = positional("run", arguments, "export", ExportArguments, export.__doc__)
    options: ExportArguments = parse(
        ExportArguments, "export", arguments, description=export.__doc__
    )
    if options.int8 is not None and (options.to != "onnx" or options.label_map):
        raise InputError(
            "--int8 is for ONNX networks that give logits. Leave out "
            f"{'--label-map' if options.label_map else f'--to {options.to}'}."
        )
    checkpoint = read_checkpoint(run_name)
    config = ExportConfig(
        to=options.to, label_map=options.label_map, size=options.size, images=options.images
    )
    out = options.out or checkpoint.path.with_name(f"model{FORMATS[options.to].suffix}")
    made = write(checkpoint, out, config)
    console = make_console()
    sizes = "any size" if made.info.size is None else "{} x {}".format(*made.info.size)
    console.print(
        f"{made.path}: images of {sizes}, {len(made.info.classes)} classes of "
        f"{made.info.dataset}. On {made.images} image{'s' * (made.images != 1)} ({made.source}) "
        f"{100 * made.different:.4f} % of the pixels differ from the checkpoint's.",
        highlight=False,
        markup=False,
    )
    if options.int8 is not None:
        from ccsnet.metrics import percent
        from ccsnet.quantise import quantise

        small = quantise(out, out.with_name(f"{out.stem}-int8.onnx"), options.int8, checkpoint)
        miou = ""
        if small.miou_before is not None and small.miou_after is not None:
            miou = f"mIoU {percent(small.miou_before)} before, {percent(small.miou_after)} after; "
        console.print(
            f"{small.path}: 8 bits, {small.bytes_after / small.bytes_before:.2f} times the size. "
            f"On {small.compared} {miou}{100 * small.agreement:.2f} % of the pixels agree.",
            highlight=False,
            markup=False,
        )
    return 0


Saved = Literal["index", "color", "overlay"]
SAVED: tuple[Saved, ...] = get_args(Saved)


@dataclass(frozen=True, kw_only=True)
class RuntimeArguments:
    """What to predict with an exported file, and what to keep of it."""

    runtime: Literal["onnxruntime", "openvino"]
    """What computes: onnxruntime takes .onnx files, openvino .xml files."""
    out: Path = Path("predictions")
    """Folder for the results; one folder inside for each kind."""
    save: tuple[Saved, ...] = ("color",)
    """index: class numbers as grey values; color: the same as a palette PNG; overlay."""
    batch_size: int = 4
    """Windows in each call of the network."""
    threads: int | None = None
    """Processors to use; none: as the runtime chooses."""
    overwrite: bool = False
    """Replace results that are there already."""


RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def predict_exported(arguments: list[str]) -> int:
    """Label images: ccsnet predict --runtime onnxruntime MODEL.onnx IMAGES... [--out DIR] [...].

    MODEL.onnx is a file that `ccsnet export` wrote; nothing else is needed, nor is torch. IMAGES
    are files, folders, or patterns such as 'photos/*.jpg'. Of many, those that cannot be labelled
    are listed at the end, and the exit status is 1.
    """
    import numpy as np

    from ccsnet.data.files import find_images
    from ccsnet.runtime import load, predict_files
    from ccsnet.terminal import TerminalReporter, make_console, table

    words, options = _split(arguments)
    chosen: RuntimeArguments = parse(
        RuntimeArguments, "predict", options, description=predict_exported.__doc__
    )
    if len(words) < 2:
        raise InputError(
            "Which file and which images? ccsnet predict --runtime onnxruntime model.onnx photo.jpg"
        )
    file, suffix = Path(words[0]), RUNTIMES[chosen.runtime]
    if file.suffix != suffix:
        raise InputError(
            f"{chosen.runtime} takes {suffix} files, not {file}. Make one: ccsnet export RUN --to "
            f"{'onnx' if suffix == '.onnx' else 'openvino'}"
        )
    if chosen.batch_size < 1:
        raise InputError(f"batch_size is {chosen.batch_size}; it must be at least 1.")
    # Earlier results are not images, wherever they lie.
    results = (chosen.out, *(chosen.out / kind for kind in SAVED))
    images = find_images(words[1:], without=results)
    model = load(file, chosen.threads)
    console = make_console()
    reporter = TerminalReporter(console)
    reporter.start("predicting", len(images))
    shares = np.zeros(len(model.classes))
    failures: list[tuple[Path, InputError | OSError]] = []
    for image, label, _ in predict_files(
        model,
        images,
        chosen.out,
        save=chosen.save,
        overwrite=chosen.overwrite,
        batch_size=chosen.batch_size,
    ):
        reporter.advance()
        if isinstance(label, Exception):
            failures.append((image, label))
            continue
        shares += np.bincount(label.ravel(), minlength=len(shares)) / label.size
    reporter.end()
    if len(failures) == len(images) == 1:
        raise failures[0][1]
    for image, error in failures:
        text = str(error)
        print(f"failed: {text if str(image) in text else f'{image}: {text}'}", file=sys.stderr)
    num = len(images) - len(failures)
    shares /= max(1, num)
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    rows = [[model.classes[i], f"{100 * shares[i]:.2f}"] for i in order]
    if rows:
        console.print(table("Share of the pictures", {"class": "left", "%": "right"}, rows))
    failed = f", {len(failures)} failed" if failures else ""
    console.print(
        f"{num} image{'s' * (num != 1)}: {', '.join(chosen.save)} in {chosen.out}{failed}",
        highlight=False,
        markup=False,
    )
    return 1 if failures else 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The file and the images, and the options around them.

    As in `ccsnet predict`, nothing but options follows the first option after the images.
    """
    rest = list(arguments)
    before: list[str] = []
    while rest and rest[0].startswith("--runtime"):  # It may stand first, as people write it.
        width = 1 if "=" in rest[0] else 2
        before, rest = before + rest[:width], rest[width:]
    words, options = before_options(rest)
    return words, before + options

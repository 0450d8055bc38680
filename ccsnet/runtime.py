"""Label images with an exported file alone: needs neither torch nor the run that it came from.

What `ccsnet.predict` does in torch is done here in NumPy, step for step, so that an exported model
gives the label maps of its checkpoint. Letters: B images, C bands, H W a size in pixels, N classes,
h w places of the logits.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Integer, Num

from ccsnet.data.images import read_image, write_index_png, write_palette_png, write_png
from ccsnet.data.transforms import aligned_size, resize_image
from ccsnet.draw import overlay, rgb_of
from ccsnet.errors import InputError
from ccsnet.runtime_maps import (
    LOGIT_STRIDE,
    Network,
    resize_nearest,
    sliding_logits,
    upsample_argmax,
    windows_of,
)

FORMAT = "ccsnet-export-1"
KEY = "ccsnet"
"""Under which a file's own metadata holds the JSON of an `ExportInfo`."""
STRIDE = 32
"""Sides of what a network takes are multiples of it."""

Save = Literal["index", "color", "overlay"]


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """What an exported file says of itself."""

    dataset: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    channels: int
    short_side: int | None
    long_side: int | None
    window: tuple[int, int] | None
    """Side and stride of the windows that images are seen in; none: as a whole."""
    label_map: bool
    """Whether the network gives label maps at its input's size instead of logits."""
    size: tuple[int, int] | None
    """The only height and width that the network takes; none: all multiples of 32."""
    smallest: int = STRIDE
    """The least side that the network takes."""
    versions: tuple[tuple[str, str], ...] = ()
    """Packages that made the file."""
    run: tuple[tuple[str, Any], ...] = ()
    """Backbone, head, steps and mIoU of the checkpoint."""

    def to_json(self) -> str:
        """The text that a file holds."""
        values = asdict(self)
        values |= {name: dict(values[name]) for name in ("versions", "run")}
        return json.dumps({"format": FORMAT, **values})

    @staticmethod
    def from_json(text: str | None, source: Path) -> "ExportInfo":
        """Read what `to_json` wrote.

        Raises:
            InputError: The file holds no such text.
        """
        try:
            values = json.loads(text or "{}")
            found = values.pop("format", None)
            if found == FORMAT:
                for name in ("classes", "window", "size"):
                    values[name] = values[name] and tuple(values[name])
                values["colours"] = tuple(tuple(colour) for colour in values["colours"])
                for name in ("versions", "run"):
                    values[name] = tuple(values[name].items())
                return ExportInfo(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            found = repr(error)
        raise InputError(
            f"{source} does not say what its classes are (found {found}, wanted {FORMAT!r}). "
            "Give a file that `ccsnet export` wrote."
        )


class ExportedModel:
    """An exported network with all that it needs to label images.

    Args:
        network: Computes one batch.
        info: What its outputs mean.
    """

    def __init__(self, network: Network, info: ExportInfo) -> None:
        self.network = network
        self.info = info
        self.classes = info.classes
        self.colours = info.colours

    def predict(
        self, image: Path | str | Num[np.ndarray, "H W C"], batch_size: int = 4
    ) -> Integer[np.ndarray, "H W"]:
        """The most likely class of every pixel.

        A network of one size, and one whose data set is tested in windows, sees the image in
        overlapping windows; any other sees it as a whole. A network that gives label maps sees the
        image as a whole, resized to what it takes; its label map is resized back.

        Args:
            image: A file, or pixel values in RGB order, H x W x channels.
            batch_size: Windows in each call of the network.

        Raises:
            InputError: The image cannot be read, or has another number of channels.
            FileNotFoundError: It is not there.
        """
        info = self.info
        if not isinstance(image, np.ndarray):
            image = read_image(Path(image), info.channels)
        if image.ndim != 3 or image.shape[2] != info.channels:
            raise InputError(
                f"The image has the shape {image.shape}; this model takes height x width x "
                f"{info.channels} channels."
            )
        size = (image.shape[0], image.shape[1])
        if info.label_map:
            label = self.network(as_input(resize_image(image, self.seen_size(size))))[0]
            label = resize_nearest(label, size)
        elif self.uses_windows:
            label = self._in_windows(image, size, batch_size)
        else:
            seen = resize_image(image, self.seen_size(size))
            label = upsample_argmax(self.network(as_input(seen))[0], size)
        return label.astype(np.uint8 if len(info.classes) <= 255 else np.uint16)

    def network_inputs(
        self, image: Num[np.ndarray, "H W C"]
    ) -> Iterator[Float32[np.ndarray, "1 C h w"]]:
        """What the network sees of an image: one after the other, without its windows' overlap."""
        if not self.uses_windows:
            yield as_input(resize_image(image, self.seen_size(image.shape[:2])))
            return
        (rows, columns), _ = self._windows()
        padded, places = windows_of(self._resized(image), (rows, columns), (rows, columns))
        for top, left in places:
            yield padded[None, :, top : top + rows, left : left + columns]

    @property
    def uses_windows(self) -> bool:
        """Whether images are seen in windows instead of as a whole."""
        return not self.info.label_map and (self.info.size or self.info.window) is not None

    def seen_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width at which the network sees a whole image of this size."""
        if self.info.size is not None:
            return self.info.size
        height, width = aligned_size(size, self.info.short_side, self.info.long_side)
        return max(height, self.info.smallest), max(width, self.info.smallest)

    def _resized(self, image: Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "h w C"]:
        """The image at the size at which windows are taken from it."""
        short, long = self.info.short_side, self.info.long_side
        return resize_image(image, aligned_size(image.shape[:2], short, long, 1))

    def _in_windows(
        self, image: np.ndarray, size: tuple[int, int], batch_size: int
    ) -> Integer[np.ndarray, "H W"]:
        window, stride = self._windows()
        seen = self._resized(image)
        logits, cell = sliding_logits(self.network, seen, window, stride, batch_size)
        # The grid may reach up to 3 pixels beyond the image: what it makes of them is cut off.
        height, width = (
            round(wanted * places * cell / side)
            for wanted, places, side in zip(size, logits.shape[1:], seen.shape[:2], strict=True)
        )
        return upsample_argmax(logits, (height, width))[: size[0], : size[1]]

    def _windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sides of the windows and their strides, rows first; a quarter in common by default."""
        side, stride = self.info.window or (0, 0)
        window = self.info.size or (side, side)
        if window == (side, side):
            return window, (stride, stride)
        rows, columns = (round(0.75 * length / LOGIT_STRIDE) * LOGIT_STRIDE for length in window)
        return window, (rows, columns)


def as_input(image: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "1 C H W"]:
    """One image as a network takes it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def load(path: Path | str, threads: int | None = None) -> ExportedModel:
    """Open an exported .onnx file with onnxruntime, or an .xml file with OpenVINO.

    Args:
        path: The file.
        threads: Processors to use; none: as the runtime chooses.

    Raises:
        FileNotFoundError: It is not there.
        InputError: It is damaged or of another kind, or the runtime is not installed.
    """
    path = Path(path)
    if path.suffix not in _LOADERS:
        raise InputError(
            f"{path} is no {' or '.join(_LOADERS)} file. Make one: ccsnet export RUN --to onnx"
        )
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Make one: ccsnet export RUN --to onnx")
    network, text = _LOADERS[path.suffix](path, threads)
    return ExportedModel(network, ExportInfo.from_json(text, path))


def _onnx(path: Path, threads: int | None) -> tuple[Network, str | None]:
    onnxruntime = needed("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors. Its warnings are about its own optimisations.
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # The package has many classes of its own.
        raise InputError(f"onnxruntime cannot open {path}: {_first_line(error)}") from error
    name = session.get_inputs()[0].name
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda image: session.run(None, {name: image})[0], metadata.get(KEY)


def _openvino(path: Path, threads: int | None) -> tuple[Network, str | None]:
    openvino = needed("openvino", "openvino")
    try:
        model = openvino.Core().read_model(path)
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        # Its own choice of 16 bits where the processor has them would change label maps.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot open {path}: {_first_line(error)}") from error
    return lambda image: compiled(image)[0], text


_LOADERS: dict[str, Callable[[Path, int | None], tuple[Network, str | None]]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def needed(module: str, extra: str) -> Any:
    """A module of one of the package's extras.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"This needs the package {error.name}, which is not installed. "
            f"pip install 'ccsnet[{extra}]'"
        ) from error


def predict_files(
    model: ExportedModel,
    images: Sequence[Path],
    out: Path,
    *,
    save: Sequence[Save] = ("color",),
    overwrite: bool = False,
    batch_size: int = 4,
) -> Iterator[tuple[Path, Integer[np.ndarray, "H W"] | InputError | OSError, tuple[Path, ...]]]:
    """Label files and write what is asked for to `out`/index, `out`/color, `out`/overlay.

    A file keeps its path below the folder that all the images share. One that cannot be read does
    not end the others.

    Args:
        model: From `load`.
        images: Files.
        out: Folder, made if missing.
        save: What to write of each.
        overwrite: Replace files that are there.
        batch_size: Windows in each call of the network.

    Yields:
        Each image, its label map or why it has none, and the files written of it.

    Raises:
        InputError: Two images would be written to one file, or a file is there already.
    """
    absolute = {image: Path(os.path.abspath(image)) for image in images}  # noqa: PTH100
    folder = os.path.commonpath([path.parent for path in absolute.values()])
    owner: dict[Path, Path] = {}
    targets: dict[Path, list[Path]] = {}
    for image, path in absolute.items():
        inside = path.relative_to(folder).with_suffix(".png")
        targets[image] = [out / kind / inside for kind in save]
        for file in targets[image]:
            other = owner.setdefault(file, image)
            if other != image:
                raise InputError(
                    f"{other} and {image} would both be written to {file}. "
                    "Predict them in two calls with different --out folders."
                )
            if file.exists() and not overwrite:
                raise InputError(
                    f"{file} is there already. Give another --out folder, or --overwrite."
                )
    for image, files in targets.items():
        try:
            pixels = read_image(image, model.info.channels)
            label = model.predict(pixels, batch_size)
        except (InputError, OSError) as error:
            yield image, error, ()
            continue
        for kind, file in zip(save, files, strict=True):
            if kind == "index":
                write_index_png(file, label)
            elif kind == "color":
                write_palette_png(file, label, model.colours)
            else:
                write_png(file, overlay(rgb_of(pixels), label, model.colours))
        yield image, label, tuple(files)

"""Write a trained model in a form that other programs run, and prove that it labels alike.

The network takes raw pixel values, float32 B x C x H x W: normalisation is inside. It gives logits
at the head's stride, or label maps at the input's size. What its classes are travels in the file;
`ccsnet.runtime` labels images with it.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from ccsnet import runtime
from ccsnet.checkpoint import Checkpoint, ClassInfo, load_model
from ccsnet.data.files import find_images
from ccsnet.data.images import read_image
from ccsnet.data.opening import open_dataset
from ccsnet.errors import InputError, unknown_name
from ccsnet.export_forms import FORMATS, MAX_DIFFERENT, ExportNetwork, cannot, quiet
from ccsnet.files import atomic_path
from ccsnet.predict import Predictor
from ccsnet.runtime import STRIDE, ExportedModel, ExportInfo
from ccsnet.segmenter import Segmenter

# C bands, H W a size in pixels.

PARITY_IMAGES = 8
"""How many images they are compared on, at most."""
Kind = Literal["onnx", "torchscript", "torch-export", "openvino"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to write."""

    to: Kind = "onnx"
    """The form: onnx and openvino run without torch."""
    label_map: bool = False
    """The network gives label maps at its input's size instead of logits."""
    size: tuple[int, int] | None = None
    """The only height and width that it takes, multiples of 32; none: all multiples of 32."""
    images: Path | None = None
    """Image or folder to compare on; none: the run's validation images, or made ones."""

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise unknown_name("form of export", self.to, FORMATS)
        if self.size is not None and any(side < STRIDE or side % STRIDE for side in self.size):
            raise InputError(
                f"size is {self.size[0]} x {self.size[1]}; both sides must be multiples of "
                f"{STRIDE}, such as 512."
            )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that labels as its checkpoint does."""

    path: Path
    info: ExportInfo
    images: int
    """How many images the two were compared on."""
    source: str
    """Where those came from."""
    different: float
    """Share of their pixels at which the label maps differ."""


def export(
    checkpoint: Checkpoint,
    out: Path,
    config: ExportConfig | None = None,
    model: Segmenter | None = None,
) -> Exported:
    """Write a checkpoint's model in another form, if its label maps are the checkpoint's.

    Args:
        checkpoint: From `read_checkpoint`.
        out: The file; replaced when it is there. Its ending is the form's, see `FORMATS`.
        config: What to write.
        model: The checkpoint's model, if it is loaded already.

    Raises:
        InputError: The model cannot be written in this form, its label maps are not the
            checkpoint's (there is no file then), or a package is missing.
    """
    config = config or ExportConfig()
    form = FORMATS[config.to]
    if out.suffix != form.suffix:
        raise InputError(
            f"{out} does not end in {form.suffix}, as a file of the form {config.to} does. "
            f"Write to {out.with_suffix(form.suffix)}."
        )
    for module in form.needs:
        runtime.needed(module, form.extra)
    predictor = Predictor(model or load_model(checkpoint), checkpoint.info)
    images, source = parity_images(checkpoint, config)
    network = ExportNetwork(predictor.model, config.label_map).eval()
    info = _info_of(checkpoint, config)
    # Before the export, which leaves symbols in what some models remember of a size (BEiT).
    wanted = _labels_of(predictor, info, images)
    with atomic_path(out) as aside, quiet(), torch.no_grad():
        weights = aside.with_suffix(form.beside) if form.beside else None
        try:
            info = form.write(network, aside, info)
            different = _different(form.open(aside), wanted, images, info)
            if different > MAX_DIFFERENT:
                raise InputError(
                    f"The exported model labels {100 * different:.2f} % of the pixels of {source} "
                    f"in another way than the checkpoint; at most {100 * MAX_DIFFERENT} % may "
                    "differ. No file was written. Try another form (--to) or one size "
                    "(--size 512 512)."
                )
            if weights is not None:  # First: the file that names them makes the pair whole.
                weights.replace(out.with_suffix(weights.suffix))
        finally:
            if weights is not None:
                weights.unlink(missing_ok=True)
    return Exported(path=out, info=info, images=len(images), source=source, different=different)


def _info_of(checkpoint: Checkpoint, config: ExportConfig) -> ExportInfo:
    info, made = checkpoint.info, checkpoint.config.model
    packages = ("ccsnet", "torch", *FORMATS[config.to].needs)
    return ExportInfo(
        dataset=info.dataset,
        classes=info.classes,
        colours=info.colours,
        channels=info.channels,
        short_side=info.short_side,
        long_side=info.long_side,
        window=info.window,
        label_map=config.label_map,
        size=config.size,
        versions=tuple((name, importlib.metadata.version(name)) for name in packages),
        run=(
            ("backbone", made.backbone),
            ("head", made.head),
            ("step", checkpoint.step),
            ("miou", checkpoint.miou),
        ),
    )


def parity_images(checkpoint: Checkpoint, config: ExportConfig) -> tuple[list[np.ndarray], str]:
    """Images to compare on, and where they come from.

    Those that the config names, else the run's validation images, else made ones.

    Raises:
        FileNotFoundError: The config names nothing.
        InputError: An image cannot be read.
    """
    channels = checkpoint.info.channels
    if config.images is not None:
        files, source = find_images([config.images]), str(config.images)
    else:
        try:
            spec, root = open_dataset(checkpoint.config.data)
            split = checkpoint.config.data.val_split
            files = [pair.image for pair in spec.pairs(root, split, require_labels=False)]
            source = f"the split {split!r} of {spec.name}"
        except (InputError, OSError):  # The data stayed where the model was trained.
            files, source = [], "made pictures"
    if not files:
        return made_images(checkpoint.info), source
    step = max(1, len(files) // PARITY_IMAGES)  # Spread over the whole folder.
    chosen = files[::step][:PARITY_IMAGES]
    return [read_image(path, channels) for path in chosen], source


def made_images(info: ClassInfo, num: int = 4) -> list[UInt8[np.ndarray, "H W C"]]:
    """Pictures of blurred patches and noise, where there are no real ones."""
    rng = np.random.default_rng(0)
    pictures = []
    for size in ((240, 320), (333, 250), (256, 256), (300, 411))[:num]:
        patches = torch.from_numpy(rng.uniform(0, 255, (1, info.channels, 6, 8)))
        smooth = F.interpolate(patches, size=size, mode="bicubic", align_corners=False)
        noisy = smooth[0].permute(1, 2, 0).numpy() + rng.normal(0, 8, (*size, info.channels))
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


def _labels_of(
    predictor: Predictor, info: ExportInfo, images: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The label maps that an exported network should give.

    Of logits for all sizes, what `predict` gives. For label maps or for one size no checkpoint
    predicts in the same steps: there its network is put in the exported one's place.
    """
    if not info.label_map and info.size is None:
        return [predictor.predict(image).label for image in images]
    network = ExportNetwork(predictor.model, info.label_map).eval()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return [ExportedModel(run, info).predict(image) for image in images]


def _different(
    exported: ExportedModel,
    wanted: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    info: ExportInfo,
) -> float:
    """Share of the images' pixels that an exported network labels differently.

    Raises:
        InputError: It fails on one.
    """
    assert exported.info == info, "the file says what was written to it"
    wrong = 0
    for image, label in zip(images, wanted, strict=True):
        try:
            wrong += int((exported.predict(image) != label).sum())
        except Exception as error:  # Each runtime has classes of its own.
            raise cannot(f"it fails at {image.shape[0]} x {image.shape[1]}", info) from error
    return wrong / sum(label.size for label in wanted)

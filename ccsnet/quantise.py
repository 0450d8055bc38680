"""An exported ONNX network in whole numbers of 8 bits, and what that costs.

Static quantisation: the ranges of all activations come from a folder of images, which should look
like those to come. Convolutions and matrix products are computed in 8 bits, the rest as before.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccsnet import runtime
from ccsnet.checkpoint import Checkpoint
from ccsnet.data.files import find_images
from ccsnet.data.images import read_image, read_label
from ccsnet.data.opening import open_dataset
from ccsnet.errors import InputError
from ccsnet.evaluate import labelled_split
from ccsnet.export_forms import quiet
from ccsnet.files import atomic_path
from ccsnet.metrics import Metrics
from ccsnet.preflight import check_classes
from ccsnet.runtime import ExportedModel

CALIBRATION_IMAGES = 64
"""More hardly move the ranges."""
QUANTISED = ("Conv", "Gemm", "MatMul", "Clip", "Relu")
"""Operations in 8 bits: nearly all of the work. The others would lose more than they gain. Without
the last two a convolution's range would hold what they cut off: on CamVid, EfficientNet-Lite0 fell
from a mIoU of 59.4 to 31.9 %."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A network in 8 bits beside the one that it was made of."""

    path: Path
    calibration_images: int
    bytes_before: int
    bytes_after: int
    agreement: float
    """Share of the pixels of the compared images that both give the same class."""
    compared: str
    """Which images those are."""
    num_compared: int
    miou_before: float | None
    """On the same images; none where they have no labels."""
    miou_after: float | None

    def to_json(self) -> str:
        """All figures."""
        values = asdict(self) | {"path": str(self.path)}
        return json.dumps(values, indent=2) + "\n"


class _Calibration:
    """Batches as ONNX Runtime asks for them: one image after another, then None."""

    def __init__(self, model: ExportedModel, images: Sequence[Path]) -> None:
        self.batches = self._batches(model, images)

    @staticmethod
    def _batches(model: ExportedModel, images: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
        for path in images:
            seen = model.network_inputs(read_image(path, model.info.channels))
            yield from ({"image": part} for part in seen)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self.batches, None)


def quantise(path: Path, out: Path, calibration: Path, checkpoint: Checkpoint) -> Quantised:
    """Write an exported .onnx file again in 8 bits, and measure both; figures go to OUT.json.

    Args:
        path: What `ccsnet.export` wrote.
        out: The .onnx file to write; replaced when it is there.
        calibration: Folder of images.
        checkpoint: Whose validation images the two are measured on; where its data is not there,
            they are compared on the images of the folder, and there is no mIoU.

    Raises:
        FileNotFoundError: The folder is not there.
        InputError: It holds no image, or a package is missing.
    """
    quantization: Any = runtime.needed("onnxruntime.quantization", "export")
    model = runtime.load(path)
    files = find_images([calibration])
    images = files[:: max(1, len(files) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    with atomic_path(out) as aside, quiet():
        prepared = aside.with_name(f"{aside.stem}-prepared.onnx")
        try:
            # Its own inference of shapes knows no sizes that are sums; the exporter's are there.
            quantization.quant_pre_process(
                str(path), str(prepared), skip_symbolic_shape=True, skip_onnx_shape=True
            )
            quantization.quantize_static(
                str(prepared),
                str(aside),
                _Calibration(model, images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            prepared.unlink(missing_ok=True)
        _keep_metadata(path, aside)
        found = _measure(model, runtime.load(aside), checkpoint, images)
    result = Quantised(
        path=out,
        calibration_images=len(images),
        bytes_before=path.stat().st_size,
        bytes_after=out.stat().st_size,
        **found,
    )
    with atomic_path(out.with_suffix(".json")) as aside:
        aside.write_text(result.to_json())
    return result


def _keep_metadata(path: Path, quantised: Path) -> None:
    """Give the new file the old one's metadata, which the tool may have dropped."""
    import onnx

    before, after = onnx.load(path, load_external_data=False), onnx.load(quantised)
    onnx.helper.set_model_props(after, {p.key: p.value for p in before.metadata_props})
    onnx.save(after, quantised)


def _measure(
    before: ExportedModel, after: ExportedModel, checkpoint: Checkpoint, images: Sequence[Path]
) -> dict[str, Any]:
    """The fields of a `Quantised` that are found by labelling images with both."""
    num = len(before.classes)
    counts = [np.zeros((num, num), np.int64) for _ in range(2)]
    same = total = 0
    try:
        spec, root = open_dataset(checkpoint.config.data)
        check_classes(checkpoint, spec)
        split = labelled_split(spec, checkpoint.config.data.val_split)
        pairs = [(pair.image, pair.label) for pair in spec.pairs(root, split)]
        compared = f"the split {split!r} of {spec.name}"
    except (InputError, OSError):  # It stayed where the model was trained, or has changed.
        spec, pairs, compared = None, [(path, None) for path in images], "the calibration images"
    for path, label_path in pairs:
        image = read_image(path, before.info.channels)
        labels = [model.predict(image) for model in (before, after)]
        same += int((labels[0] == labels[1]).sum())
        total += labels[0].size
        if spec is not None and label_path is not None:
            truth = read_label(label_path, spec)
            valid = truth != spec.ignore_index
            for count, label in zip(counts, labels, strict=True):
                pair = truth[valid].astype(np.int64) * num + label[valid]
                count += np.bincount(pair, minlength=num * num).reshape(num, num)
    miou = [
        None if spec is None else Metrics(classes=before.classes, confusion=count).miou
        for count in counts
    ]
    return {
        "agreement": same / total,
        "compared": compared,
        "num_compared": len(pairs),
        "miou_before": miou[0],
        "miou_after": miou[1],
    }

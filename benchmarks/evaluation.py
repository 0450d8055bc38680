"""What evaluation costs beyond forward and upsampling: ms per image, against other libraries.

    pip install --target FOLDER --no-deps torchmetrics lightning-utilities
    PYTHONPATH=FOLDER python -m benchmarks.evaluation

Label maps of 683x512 with 150 classes, as large as ADE20K's: regions, of which a tenth is predicted
wrongly in patches and 5 % are ignored. One thread; seconds are those of the processor, which other
programs disturb less. The contenders take turns, and the median of the paired ratios counts. Those
that are not installed are left out. All give the same IoU of every class, which is printed too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.turns import paired_ratio, take_turns
from ccsnet.backbones import make_torchvision_importable
from ccsnet.boundary import BoundaryCounts
from ccsnet.calibration import CalibrationCounts
from ccsnet.counts import ConfusionMatrix, ImageCounts
from ccsnet.memory import keep_freed_memory
from ccsnet.metrics import Metrics

Contender = Callable[[Tensor, Tensor, Tensor], object]
IGNORED = 255


def make_images(num: int, size: tuple[int, int], classes: int) -> list[tuple[Tensor, ...]]:
    """Labels, predictions and confidences."""
    generator = torch.Generator().manual_seed(0)

    def patches(side: int, end: int) -> Tensor:
        rows, columns = -(-size[0] // side), -(-size[1] // side)
        grid = torch.randint(end, (rows, columns), generator=generator)
        wide = grid.repeat_interleave(side, 0).repeat_interleave(side, 1)
        return wide[: size[0], : size[1]].contiguous()

    images = []
    for _ in range(num):
        label = patches(64, classes)
        wrong = patches(16, 10) == 0
        prediction = torch.where(wrong, patches(16, classes), label)
        label[patches(32, 20) == 0] = IGNORED
        images.append((label, prediction, torch.rand(size, generator=generator)))
    return images


def class_iou(counts: ConfusionMatrix) -> np.ndarray:
    names = [str(i) for i in range(counts.num_classes)]
    return Metrics(classes=names, confusion=counts.matrix()).iou


def our_contenders(classes: int) -> tuple[dict[str, Contender], dict[str, Callable[[], Any]]]:
    """Name -> what is done for every image, and where there is IoU, name -> what it is."""
    plain, total, masked = (ConfusionMatrix(classes) for _ in range(3))
    kept, contours, bins = ImageCounts(), BoundaryCounts(classes), CalibrationCounts(classes)

    def ranked(label: Tensor, prediction: Tensor, _: Tensor) -> None:
        alone = ConfusionMatrix(classes)
        alone.update(label, prediction)
        total.add(alone)
        kept.update("name", alone)

    def by_mask(label: Tensor, prediction: Tensor, _: Tensor) -> None:
        valid = label != IGNORED
        codes = (label * classes + prediction)[valid]
        masked.counts = masked.counts + torch.bincount(codes, minlength=classes**2)

    contenders: dict[str, Contender] = {
        "ours": lambda label, prediction, _: plain.update(label, prediction),
        "ours, and each image by itself": ranked,
        "ours, boundary IoU alone": lambda label, prediction, _: contours.update(label, prediction),
        "ours, calibration alone": bins.update,
        "int64 codes by mask": by_mask,
    }
    iou = {
        "ours": lambda: class_iou(plain),
        "ours, and each image by itself": lambda: class_iou(total),
        "int64 codes by mask": lambda: class_iou(masked),
    }
    return contenders, iou


def other_contenders(classes: int) -> tuple[dict[str, Contender], dict[str, Callable[[], Any]]]:
    """The same of what is installed."""
    contenders: dict[str, Contender] = {}
    iou: dict[str, Callable[[], Any]] = {}
    make_torchvision_importable()
    try:
        from torchmetrics.classification import (  # pyright: ignore[reportMissingImports]
            MulticlassJaccardIndex,
        )
    except ImportError:
        print("torchmetrics is not installed")
    else:
        for check in (True, False):
            metric = MulticlassJaccardIndex(
                classes, average=None, ignore_index=IGNORED, validate_args=check
            )
            name = f"torchmetrics Jaccard{'' if check else ', unchecked'}"
            contenders[name] = lambda label, prediction, _, m=metric: m.update(prediction, label)
            iou[name] = lambda m=metric: m.compute().numpy()
    try:
        from segmentation_models_pytorch.metrics import get_stats
    except ImportError:
        print("segmentation_models_pytorch is not installed")
    else:
        sums: list[Any] = []

        def stats(label: Tensor, prediction: Tensor, _: Tensor) -> None:
            found = get_stats(
                prediction[None],  # pyright: ignore[reportArgumentType]
                torch.where(label == IGNORED, -1, label)[None],  # pyright: ignore[reportArgumentType]
                mode="multiclass",
                num_classes=classes,
                ignore_index=-1,
            )
            hit, wrong, missed, _ = (part.sum(0) for part in found)
            sums[:] = [a + b for a, b in zip(sums or (0, 0, 0), (hit, wrong, missed), strict=True)]

        contenders["smp get_stats"] = stats
        iou["smp get_stats"] = lambda: (sums[0] / (sums[0] + sums[1] + sums[2])).numpy()
    return contenders, iou


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluation beyond forward and upsampling.")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=683)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    images = make_images(arguments.images, (arguments.height, arguments.width), arguments.classes)
    contenders, iou = our_contenders(arguments.classes)
    for ours, theirs in zip((contenders, iou), other_contenders(arguments.classes), strict=True):
        ours.update(theirs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def of_all(contender: Contender) -> None:
        for image in images:
            contender(*image)

    jobs = {name: partial(of_all, contender) for name, contender in contenders.items()}
    with torch.inference_mode():
        times = take_turns(jobs, arguments.repeats, clock=time.process_time)
    print(
        f"{arguments.classes} classes, {arguments.width}x{arguments.height}, torch "
        f"{torch.__version__}, 1 thread; ms per image"
    )
    for name, values in times.items():
        each = [1e3 * value / len(images) for value in values]
        print(
            f"{name:40} {statistics.median(each):8.2f} ({min(each):.2f} to {max(each):.2f})"
            f"   this / ours {paired_ratio(values, times['ours']):.1f}"
        )
    expected = iou["ours"]()
    for name, found in iou.items():
        difference = np.nanmax(np.abs(np.nan_to_num(found()) - np.nan_to_num(expected)))
        print(f"{name:40} IoU of classes differs from ours by at most {difference:.1e}")


if __name__ == "__main__":
    main()

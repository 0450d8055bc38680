"""From files to training batches: images a second, against the same pipeline in other libraries.

    pip install --target FOLDER albumentations==2.0.8   # apart, for it brings another OpenCV
    PYTHONPATH=FOLDER python -m benchmarks.reading

ADE20K's training pipeline on pictures of its size (683x512 JPEG, PNG labels of 150 classes):
decode, scale by 0.5 to 2, crop of 512x512 in which no class has more than 75 %, flip, photometric
distortion, pad, batch of 16. One process, one thread; seconds are those of the processor, which
other programs disturb less. The contenders take turns; the medians of their rounds are compared.
Pictures are cut from scikit-learn's two photographs.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from ccsnet.backbones import make_torchvision_importable
from ccsnet.data.loading import training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.memory import keep_freed_memory

ROUNDS, BATCH, BATCHES, PICTURES = 7, 16, 12, 64
SIDE, CLASSES, IGNORED = 512, 150, 255
MAX_SHARE, TRIES = 0.75, 10

Samples = Callable[[list[tuple[Path, Path]]], int]


def make_pictures(folder: Path) -> list[tuple[Path, Path]]:
    """Photographs of 683x512 with labels whose regions follow what is seen."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    pairs = []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(PICTURES):
        photo = photos[number % len(photos)]
        height = int(rng.integers(300, 420))
        width = round(height * 683 / 512)
        top, left = (
            int(rng.integers(0, s - c + 1))
            for s, c in zip(photo.shape[:2], (height, width), strict=True)
        )
        view = cv2.resize(photo[top : top + height, left : left + width], (683, 512))
        view = view[:, ::-1] if rng.random() < 0.5 else view
        smooth = cv2.medianBlur(np.ascontiguousarray(view), 15) // 64
        code = smooth[..., 0] * 16 + smooth[..., 1] * 4 + smooth[..., 2]
        label = rng.permutation(CLASSES)[:64].astype(np.uint8)[code]
        image_file = folder / "images" / f"{number:03}.jpg"
        label_file = folder / "labels" / f"{number:03}.png"
        Image.fromarray(view).save(image_file, quality=90)
        Image.fromarray(label).save(label_file)
        pairs.append((image_file, label_file))
    names = ", ".join(f"c{index}" for index in range(CLASSES))
    (folder / "dataset.yaml").write_text(
        f"classes: [{names}]\nimages: images/*.jpg\nlabels: labels/*.png\n"
        "splits: [train]\nshort_side: 512\nlong_side: 2048\n"
    )
    return pairs


def ours(folder: Path) -> Samples:
    """The pipeline of `ccsnet train`."""
    config = DataConfig(dataset=str(folder / "dataset.yaml"), workers=0)
    spec, root = open_dataset(config)

    def read(pairs: list[tuple[Path, Path]]) -> int:
        batches = training_batches(
            spec, root, config, batch_size=BATCH, seed=random.randrange(1000), steps=BATCHES
        )
        return sum(len(batch.image) for batch in batches)

    return read


def window(label: np.ndarray) -> tuple[int, int]:
    """A crop's top and left, drawn again while one class has too much of it."""
    top = left = 0
    for _ in range(TRIES):
        top = random.randint(0, max(0, label.shape[0] - SIDE))
        left = random.randint(0, max(0, label.shape[1] - SIDE))
        counts = np.bincount(label[top : top + SIDE, left : left + SIDE].ravel(), minlength=256)
        labelled = counts[:IGNORED]
        if labelled.max() <= MAX_SHARE * max(1, labelled.sum()):
            break
    return top, left


def in_batches(sample: Callable[[Path, Path], tuple[torch.Tensor, torch.Tensor]]) -> Samples:
    """Batches of what a contender makes of one picture."""

    def read(pairs: list[tuple[Path, Path]]) -> int:
        count = 0
        for _ in range(BATCHES):
            made = [sample(*pair) for pair in random.sample(pairs, BATCH)]
            images = torch.stack([image for image, _ in made])
            labels = torch.stack([label for _, label in made]).long()
            count += len(images) * (len(labels) > 0)
        return count

    return read


def with_albumentations() -> Samples:
    """Decoding by OpenCV, the rest by albumentations, but for the crop's rule, which it lacks."""
    import albumentations as A  # pyright: ignore[reportMissingImports]

    scale = A.RandomScale(scale_limit=(-0.5, 1.0), p=1)
    pad = A.PadIfNeeded(SIDE, SIDE, position="top_left", fill=0, fill_mask=IGNORED)
    rest = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.125, contrast_limit=0.5, p=0.75),
            A.HueSaturationValue(hue_shift_limit=9, sat_shift_limit=64, val_shift_limit=0, p=0.75),
            pad,
        ]
    )
    scale = A.Compose([scale])

    def sample(image_file: Path, label_file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.cvtColor(cv2.imread(str(image_file)), cv2.COLOR_BGR2RGB)  # pyright: ignore
        label = cv2.imread(str(label_file), cv2.IMREAD_GRAYSCALE)
        scaled = scale(image=image, mask=label)
        image, label = scaled["image"], scaled["mask"]
        top, left = window(label)
        rows, columns = slice(top, top + SIDE), slice(left, left + SIDE)
        made = rest(image=image[rows, columns], mask=label[rows, columns])
        pixels = np.ascontiguousarray(made["image"].transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(np.ascontiguousarray(made["mask"]))

    return in_batches(sample)


def with_torchvision(*, tensors: bool) -> Samples:
    """Decoding by Pillow, the rest by torchvision's v2 transforms."""
    make_torchvision_importable()
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    distort = v2.RandomPhotometricDistort(
        brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05)
    )

    def sample(image_file: Path, label_file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        image: Any = Image.open(image_file).convert("RGB")
        label = tv_tensors.Mask(F.pil_to_tensor(Image.open(label_file)))
        if tensors:
            image = F.pil_to_tensor(image)
        factor = random.uniform(0.5, 2.0)
        size = [round(side * factor) for side in label.shape[-2:]]
        image = F.resize(image, size, antialias=False)
        label = F.resize(label, size, interpolation=v2.InterpolationMode.NEAREST_EXACT)
        top, left = window(label[0].numpy())
        shown = min(SIDE, size[0]), min(SIDE, size[1])
        image, label = (F.crop(item, top, left, *shown) for item in (image, label))
        if random.random() < 0.5:
            image, label = F.hflip(image), F.hflip(label)
        image = distort(image)
        rest = [0, 0, SIDE - shown[1], SIDE - shown[0]]
        image, label = F.pad(image, rest, fill=0), F.pad(label, rest, fill=IGNORED)
        return F.pil_to_tensor(image) if not tensors else image, label[0]

    return in_batches(sample)


def main() -> int:
    """Take turns, and print images a second and the ratio to the fastest other."""
    keep_freed_memory()  # As the command line does; for all contenders.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        pairs = make_pictures(Path(name) / "pictures")
        contenders = {"ccsnet": ours(Path(name) / "pictures")}
        try:
            contenders["albumentations"] = with_albumentations()
        except ImportError:
            print("albumentations is not installed: not run.", file=sys.stderr)
        contenders["torchvision v2, tensors"] = with_torchvision(tensors=True)
        contenders["torchvision v2, Pillow"] = with_torchvision(tensors=False)
        rates: dict[str, list[float]] = {contender: [] for contender in contenders}
        for turn in range(ROUNDS + 1):
            for contender, read in contenders.items():
                start = time.process_time()
                count = read(pairs)
                if turn:  # The first is for the caches.
                    rates[contender].append(count / (time.process_time() - start))
    medians = {contender: statistics.median(found) for contender, found in rates.items()}
    for contender, rate in medians.items():
        spread = f"{min(rates[contender]):.0f} to {max(rates[contender]):.0f}"
        print(f"{contender:24} {rate:6.0f} images/s  ({spread}; {1000 / rate:.1f} ms an image)")
    fastest = max(rate for contender, rate in medians.items() if contender != "ccsnet")
    print(f"ccsnet is {medians['ccsnet'] / fastest:.2f} times as fast as the fastest other.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

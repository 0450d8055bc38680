"""A folder of small files against the same data in tar shards, as ratios of one run.

    python -m benchmarks.shards [FOLDER]

2000 JPEGs with PNG labels are written below FOLDER, which decides what disk is measured (default:
where temporary files go). Four things are timed, the two taking turns: listing a split; reading the
bytes of an epoch in its random order, from memory and from the disk; an epoch of training samples.
What is read from the disk was taken out of the page cache file by file, which Linux lets anyone do;
names and inodes of the folder's files stay cached, so a cold network disk gains more than is shown.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from ccsnet.data.images import write_bytes
from ccsnet.data.loading import sample_order, training_batches
from ccsnet.data.opening import DataConfig, open_dataset
from ccsnet.data.shard import MEBIBYTE, own_description, shard_dataset

ROUNDS, PICTURES, BATCH, CLASSES = 7, 2000, 16, 8
SIZE = (192, 256)

Timed = Callable[[Path], float]


def make_pictures(folder: Path) -> None:
    """Smooth noise as JPEG, its level as the label."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        label = picture[..., 1] // (256 // CLASSES)
        for kind, suffix, pixels in (("images", ".jpg", picture), ("labels", ".png", label)):
            done, data = cv2.imencode(suffix, pixels)
            assert done, "OpenCV encodes any 8-bit image"
            # As a download would: a thousand files a folder.
            place = folder / kind / f"{number // 1000}" / f"{number:05}{suffix}"
            write_bytes(place, data.tobytes())
    names = ", ".join(f"c{index}" for index in range(CLASSES))
    (folder / "dataset.yaml").write_text(
        f"classes: [{names}]\nimages: images/*/*.jpg\nlabels: labels/*/*.png\n"
        "split: [0.9, 0.1]\ncrop: [128, 128]\n"
    )


def listing(folder: Path) -> float:
    """Seconds to find all pairs of a split."""
    spec, root = open_dataset(DataConfig(dataset=str(folder)))
    start = time.perf_counter()
    spec.pairs(root, "train")
    return time.perf_counter() - start


def reading(folder: Path) -> float:
    """Seconds to read the bytes of an epoch in the order of training."""
    spec, root = open_dataset(DataConfig(dataset=str(folder)))
    pairs = spec.pairs(root, "train")
    order = sample_order(0, 0, len(pairs)).tolist()
    start = time.perf_counter()
    for index in order:
        _, image, label = pairs[index]
        assert label is not None, "all have one"
        image.read_bytes()
        label.read_bytes()
    return time.perf_counter() - start


def training(folder: Path) -> float:
    """Seconds for a quarter of an epoch of training samples, read in this process."""
    config = DataConfig(dataset=str(folder), workers=0)
    spec, root = open_dataset(config)
    steps = PICTURES // 4 // BATCH
    batches = training_batches(spec, root, config, batch_size=BATCH, seed=0, steps=steps)
    start = time.perf_counter()
    assert sum(len(batch.image) for batch in batches) == steps * BATCH
    return time.perf_counter() - start


def from_disk(folder: Path) -> float:
    """`reading`, with nothing of the files in memory."""
    if not drop_from_memory(sorted(path for path in folder.rglob("*") if path.is_file())):
        raise OSError("the page cache could not be dropped")
    return reading(folder)


def drop_from_memory(files: Sequence[Path]) -> bool:
    """Take files out of the page cache; False where that cannot be done, or not be seen."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    for path in files:
        _drop(path)
    probed = files[:: max(1, len(files) // 16)]
    cold = all([_is_cold(path) for path in probed])
    time.sleep(0.2)  # Asking has made the system read ahead.
    for path in probed:
        _drop(path)
    return cold


def _drop(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)  # What is not yet on the disk cannot be dropped.
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(number)


def _is_cold(path: Path) -> bool:
    number = os.open(path, os.O_RDONLY)
    try:
        os.preadv(number, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:  # It would have to wait for the disk.
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False


def compare(name: str, timed: Timed, places: dict[str, Path]) -> None:
    """Take turns; print medians and the median of the rounds' own ratios."""
    seconds: dict[str, list[float]] = {place: [] for place in places}
    try:
        for turn in range(ROUNDS + 1):
            for place, folder in places.items():
                found = timed(folder)
                if turn:  # The first is for the caches.
                    seconds[place].append(found)
    except OSError as error:
        print(f"{name:32} not measured: {error}")
        return
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    medians = ", ".join(f"{p} {statistics.median(s):.3f} s" for p, s in seconds.items())
    print(
        f"{name:32} {medians}; folder / shards {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> int:
    """Write the data in both forms, and compare."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        places = {"folder": Path(name) / "folder", "shards": Path(name) / "shards"}
        make_pictures(places["folder"])
        spec, root = open_dataset(DataConfig(dataset=str(places["folder"])))
        shard_dataset(
            spec,
            root,
            places["shards"],
            shard_bytes=8 * MEBIBYTE,
            description=own_description(str(places["folder"]), spec),
        )
        for place, folder in places.items():
            files = [path for path in folder.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            print(f"{place}: {len(files)} files, {size / MEBIBYTE:.1f} MiB")
        compare("listing a split", listing, places)
        compare("reading an epoch, from memory", reading, places)
        compare("reading an epoch, from the disk", from_disk, places)
        compare("a quarter epoch of samples", training, places)
    return 0


if __name__ == "__main__":
    sys.exit(main())

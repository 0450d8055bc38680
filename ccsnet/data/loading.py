"""From a data set to batches: seeded, shared among processes, resumable at any step.

Letters: B images, C bands, H W a size as read, h w a size as made.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64, UInt8, UInt16
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ccsnet.data.opening import DataConfig, augmentation, read_pair, test_sides
from ccsnet.data.parallel import start_worker
from ccsnet.data.sampling import (
    epoch_length,
    rare_class_odds,
    repeat_factors,
    repeated_order,
    scan_labels,
)
from ccsnet.data.transforms import Augmentation, augment, resize_aligned
from ccsnet.data.workers import Failure
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.errors import InputError


class Batch(NamedTuple):
    """Training samples of one size."""

    image: UInt8[Tensor, "B C H W"] | Int32[Tensor, "B C H W"]
    """Values as in the files; 16-bit images are int32, because torch computes little in uint16."""
    label: Int64[Tensor, "B H W"]
    names: list[str]


class Sample(NamedTuple):
    """One image for evaluation."""

    image: UInt8[Tensor, "C h w"] | Int32[Tensor, "C h w"]
    """Resized as for testing: both sides multiples of 32 unless it is seen in windows."""
    label: Int64[Tensor, "H W"]
    """At the size of the file."""
    name: str
    size: tuple[int, int]
    """Height and width of the file."""


def sample_order(seed: int, epoch: int, num: int) -> Int64[np.ndarray, " num"]:
    """The order in which an epoch shows its samples."""
    # The spawn key keeps this stream apart from the samples' own, which (seed, epoch) alone would
    # not: numpy reads it like (seed, epoch, 0).
    source = np.random.SeedSequence((seed, epoch), spawn_key=(0,))
    return np.random.default_rng(source).permutation(num)


class _TrainingSamples(Dataset):
    """Sample n of the whole run, for any n."""

    def __init__(
        self,
        pairs: list[Pair],
        spec: DatasetSpec,
        how: Augmentation,
        seed: int,
        factors: Float64[np.ndarray, " images"] | None = None,
    ) -> None:
        self.pairs, self.spec, self.how, self.seed = pairs, spec, how, seed
        self.factors = factors
        self.length = len(pairs) if factors is None else epoch_length(factors)
        self.epoch, self.order = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, str] | Failure:
        try:
            epoch, place = divmod(number, self.length)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, self._order(epoch)
            index = int(self.order[place])
            pair = self.pairs[index]
            image, label = read_pair(pair, self.spec)
            # An image that is shown twice in an epoch is not made the same twice.
            again = () if self.factors is None else (place,)
            rng = np.random.default_rng((self.seed, epoch, index, *again))
            return *augment(image, label, rng, self.how), pair.name
        except (InputError, OSError) as error:
            return Failure(error)

    def _order(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        if self.factors is None:
            return sample_order(self.seed, epoch, len(self.pairs))
        return repeated_order(self.seed, epoch, self.factors)


class _EvaluationSamples(Dataset):
    def __init__(
        self,
        pairs: list[Pair],
        spec: DatasetSpec,
        sides: tuple[int | None, int | None],
        multiple: int,
    ) -> None:
        self.pairs, self.spec, self.sides, self.multiple = pairs, spec, sides, multiple

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample | Failure:
        try:
            pair = self.pairs[index]
            image, label = read_pair(pair, self.spec)
            size = (image.shape[0], image.shape[1])
            resized = resize_aligned(image, *self.sides, self.multiple)
            return Sample(image_tensor(resized), torch.from_numpy(label), pair.name, size)
        except (InputError, OSError) as error:
            return Failure(error)


class SafeLoader(DataLoader):
    """A DataLoader that raises its workers' errors as they were, and gives labels as int64."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every batch in turn.

        Raises:
            FileNotFoundError: A file has gone.
            InputError: A file cannot be used.
        """
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise batch.error
            yield _with_int64_label(batch)


def training_batches(
    spec: DatasetSpec,
    root: Path,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> SafeLoader:
    """This process's share of the batches from `start_step` to `steps`.

    The order needs no state: sample n of a run is entry n % length of the order of epoch
    n // length. So a run that starts at a later step sees what it would have seen, whatever the
    number of workers or processes.

    Args:
        spec: The data set.
        root: Its folder.
        config: Which split, and how samples are made.
        batch_size: Images per step over all processes.
        seed: With the epoch and the sample's index, what every random choice comes from.
        steps: Where the run ends.
        start_step: The step to go on from.
        rank: Which process this is.
        world_size: How many processes share a batch.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The batch does not divide among the processes, or the data is wrong.
    """
    if batch_size < 1 or batch_size % world_size:
        raise InputError(
            f"The batch size is {batch_size}; it must be a multiple of the {world_size} "
            f"process{'es' if world_size > 1 else ''} that share it."
        )
    if seed < 0:
        raise InputError(f"The seed is {seed}; it must be 0 or more.")
    pairs = spec.pairs(root, config.train_split)
    share = batch_size // world_size
    first = rank * share
    numbers = [
        list(range(step * batch_size + first, step * batch_size + first + share))
        for step in range(start_step, steps)
    ]
    how, factors = augmentation(spec, config), None
    if config.knows_classes:
        scan = scan_labels(spec, root, config.train_split, workers=config.num_workers)
        how = replace(how, class_odds=rare_class_odds(scan.pixels))
        if config.repeat_threshold is not None:
            factors = repeat_factors(scan.present, config.repeat_threshold)
    return SafeLoader(
        _TrainingSamples(pairs, spec, how, seed, factors),
        batch_sampler=numbers,
        collate_fn=_collate,
        **_worker_settings(config, len(numbers)),
    )


class EvaluationSamples:
    """The images of a split, one at a time, read ahead by workers."""

    def __init__(self, loader: SafeLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Sample]:
        """Every image in turn.

        Raises:
            FileNotFoundError: A file has gone.
            InputError: A file cannot be used.
        """
        return iter(self._loader)


def evaluation_samples(
    spec: DatasetSpec,
    root: Path,
    config: DataConfig,
    split: str,
    rank: int = 0,
    world_size: int = 1,
    multiple: int = 32,
) -> EvaluationSamples:
    """This process's share of a split; shares differ by at most one image.

    Args:
        spec: The data set.
        root: Its folder.
        config: The size of the images and the number of workers.
        split: Which split.
        rank: Which process this is.
        world_size: How many processes share the split.
        multiple: What the sides are rounded up to; 1 for images that are seen in windows.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: The split is unknown or empty, or an image has no label.
    """
    pairs = spec.pairs(root, split)[rank::world_size]
    samples = _EvaluationSamples(pairs, spec, test_sides(spec, config), multiple)
    return EvaluationSamples(
        SafeLoader(
            samples, batch_size=None, collate_fn=_as_is, **_worker_settings(config, len(pairs))
        )
    )


def batches_of_equal_size(samples: Iterable[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Group samples whose images have one size; the order changes, nothing is lost.

    At most eight batches' samples wait for others of their size; then the largest group goes.
    """
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    num_waiting = 0
    for sample in samples:
        group = waiting.setdefault(tuple(sample.image.shape), [])
        group.append(sample)
        num_waiting += 1
        if len(group) < batch_size and num_waiting > 8 * batch_size:
            group = max(waiting.values(), key=len)
        elif len(group) < batch_size:
            continue
        num_waiting -= len(group)
        yield waiting.pop(tuple(group[0].image.shape))
    yield from waiting.values()


def image_tensor(
    image: UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"],
) -> UInt8[Tensor, "C H W"] | Int32[Tensor, "C H W"]:
    """An image as read, with its bands in front; 16 bits become int32."""
    return _numbers_tensor(image.transpose(2, 0, 1))


def _numbers_tensor(values: np.ndarray) -> Tensor:
    if values.dtype == np.uint16:
        values = values.astype(np.int32)
    return torch.from_numpy(np.ascontiguousarray(values))


def _collate(samples: list[tuple[np.ndarray, np.ndarray, str] | Failure]) -> Batch | Failure:
    """One batch, its labels still as small as in the files."""
    images, labels, names = [], [], []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
        names.append(sample[2])
    if len({image.dtype for image in images}) > 1:
        return Failure(
            InputError(
                f"Some images have 8 bits and some 16: {', '.join(names)}. Write all of them with "
                "one depth."
            )
        )
    # numpy, because torch would start threads for each of these small copies: ten times slower.
    # The bands stay last in memory, where the files and many networks have them.
    stacked = _numbers_tensor(np.stack(images)).permute(0, 3, 1, 2)
    return Batch(stacked, torch.from_numpy(np.stack(labels)), names)


def _with_int64_label(batch: Any) -> Any:
    """The same with labels as losses take them; done last, so that processes share little."""
    return batch._replace(label=torch.from_numpy(batch.label.numpy().astype(np.int64)))


def _as_is(sample: Any) -> Any:
    return sample


def _worker_settings(config: DataConfig, num_batches: int) -> dict[str, Any]:
    # More workers than batches would only start and stop.
    num = min(config.num_workers, num_batches)
    return {"num_workers": num, "worker_init_fn": start_worker if num else None}

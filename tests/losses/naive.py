"""Every loss once more, of one batch, from its definition: NumPy, float64, pixel by pixel.

A function for each file of ccsnet/losses, under its name, with the file's defaults. It gets logits
(B, N, H, W), label (B, H, W), the index that is ignored, class weights or None, and options.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np


def log_probs(scores: np.ndarray) -> np.ndarray:
    """Of one pixel."""
    shifted = scores - scores.max()
    return shifted - math.log(np.exp(shifted).sum())


def pixels(logits, label, ignored) -> Iterator[tuple[int, int, int, int, np.ndarray]]:
    """Image, row, column, class and log probabilities of every valid pixel."""
    for b, y, x in np.ndindex(label.shape):
        if label[b, y, x] != ignored:
            yield b, y, x, label[b, y, x], log_probs(logits[b, :, y, x].astype(np.float64))


def weighted_mean(losses: list[float], weights: list[float]) -> float:
    total = sum(weights)
    both = zip(losses, weights, strict=True)
    return sum(loss * weight for loss, weight in both) / total if total else 0.0


def mean_over_images(of_image, logits, label, ignored, weights) -> float:
    """Images without a valid pixel do not count."""
    losses = [
        of_image(list(pixels(logits[b : b + 1], label[b : b + 1], ignored)), weights)
        for b in range(len(label))
        if (label[b] != ignored).any()
    ]
    return float(np.mean(losses)) if losses else 0.0


def weight_of(weights, c) -> float:
    return 1.0 if weights is None else float(weights[c])


def ce(logits, label, ignored, weights=None, label_smoothing=0.0) -> float:
    losses, counts = 0.0, 0.0
    for _, _, _, c, logs in pixels(logits, label, ignored):
        target = np.full(len(logs), label_smoothing / len(logs))
        target[c] += 1 - label_smoothing
        losses -= sum(t * weight_of(weights, k) * logs[k] for k, t in enumerate(target))
        counts += weight_of(weights, c)
    return losses / counts if counts else 0.0


def focal(logits, label, ignored, weights=None, gamma=2.0) -> float:
    found = [
        ((1 - math.exp(logs[c])) ** gamma * -logs[c], weight_of(weights, c))
        for _, _, _, c, logs in pixels(logits, label, ignored)
    ]
    return weighted_mean([loss for loss, _ in found], [weight for _, weight in found])


def boundary(logits, label, ignored, weights=None, radius=3, weight=3.0) -> float:
    losses, counts = [], []
    for b, y, x, c, logs in pixels(logits, label, ignored):
        rows = slice(max(0, y - radius), y + radius + 1)
        columns = slice(max(0, x - radius), x + radius + 1)
        others = set(label[b, rows, columns].flatten().tolist()) - {int(c), ignored}
        losses.append(-logs[c])
        counts.append(weight_of(weights, c) * (weight if others else 1))
    return weighted_mean(losses, counts)


def ohem(logits, label, ignored, weights=None, threshold=0.7, min_kept=0.1) -> float:
    def of_image(found, weights) -> float:
        hardest = sorted(((-logs[c], weight_of(weights, c)) for *_, c, logs in found), reverse=True)
        least = hardest[max(1, round(min_kept * len(hardest))) - 1][0]
        kept = [(v, w) for v, w in hardest if v >= least or math.exp(-v) <= threshold]
        return weighted_mean([v for v, _ in kept], [w for _, w in kept])

    return mean_over_images(of_image, logits, label, ignored, weights)


def tversky(logits, label, ignored, weights=None, alpha=0.3, beta=0.7) -> float:
    def of_image(found, _) -> float:
        losses = []
        for k in {c for *_, c, _ in found}:
            hit = sum(math.exp(logs[k]) for *_, c, logs in found if c == k)
            false = sum(math.exp(logs[k]) for *_, c, logs in found if c != k)
            missed = sum(1 - math.exp(logs[k]) for *_, c, logs in found if c == k)
            losses.append(1 - hit / (hit + alpha * false + beta * missed))
        return float(np.mean(losses))

    return mean_over_images(of_image, logits, label, ignored, weights)


def dice(logits, label, ignored, weights=None) -> float:
    def of_image(found, _) -> float:
        losses = []
        for k in {c for *_, c, _ in found}:
            both = sum(math.exp(logs[k]) for *_, c, logs in found if c == k)
            sizes = sum(math.exp(logs[k]) + (c == k) for *_, c, logs in found)
            losses.append(1 - 2 * both / sizes)
        return float(np.mean(losses))

    return mean_over_images(of_image, logits, label, ignored, weights)


def lovasz(logits, label, ignored, weights=None) -> float:
    """The integral over t of 1 - IoU with the pixels of an error above t taken for wrong."""

    def of_image(found, _) -> float:
        losses = []
        for k in {c for *_, c, _ in found}:
            errors = [abs((c == k) - math.exp(logs[k])) for *_, c, logs in found]
            inside = [c == k for *_, c, _ in found]
            levels = sorted({0.0, *errors})
            area = 0.0
            for low, high in itertools.pairwise(levels):
                wrong = [error > low for error in errors]
                both = list(zip(inside, wrong, strict=True))
                intersection = sum(i and not w for i, w in both)
                union = sum(i or w for i, w in both)
                area += (high - low) * (1 - intersection / union)
            losses.append(area)
        return float(np.mean(losses))

    return mean_over_images(of_image, logits, label, ignored, weights)

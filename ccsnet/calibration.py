"""Calibration: whether pixels are right as often as the model says, from streaming counts."""

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from ccsnet.counts import Counts, as_classes
from ccsnet.errors import InputError
from ccsnet.scores import CONFIDENCE_UNITS

NUM_BINS = 15
"""Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, table 1."""


class CalibrationCounts(Counts):
    """How often pixels of each confidence are right, over a set of images.

    Confidence is the largest of a pixel's class probabilities. Bins are equally wide, and a bound
    belongs to the bin below it, as float32 rounds. Source: Guo et al., ICML 2017, section 2.

    Args:
        num_classes: Classes, from 0.
        ignore_index: The label that counts nowhere.
        num_bins: Bins of confidence between 0 and 1.

    Raises:
        InputError: There is no bin.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, num_bins: int = NUM_BINS) -> None:
        if num_bins < 1:
            raise InputError(f"num_bins is {num_bins}; give 1 or more, such as {NUM_BINS}.")
        super().__init__(3 * num_bins, num_classes, ignore_index)
        self.num_bins = num_bins

    def update(
        self,
        label: Integer[Tensor, "*B H W"],
        prediction: Integer[Tensor, "*B H W"],
        confidence: Float[Tensor, "*B H W"],
    ) -> None:
        """Add images of any size.

        Args:
            label: Their labels.
            prediction: The most likely class of each pixel.
            confidence: Its probability.

        Raises:
            InputError: A label or a prediction is no class, a confidence is no probability, or
                their sizes differ.
        """
        label, prediction = as_classes(label, prediction, self.num_classes, self.ignore_index)
        confidence = confidence.float()
        if confidence.shape != label.shape:
            raise InputError(
                f"Confidences of {tuple(confidence.shape)} do not belong to a label of "
                f"{tuple(label.shape)}: give one for each pixel."
            )
        if confidence.numel():
            low, high = (float(end) for end in torch.aminmax(confidence))
            if not (low >= 0 and high <= 1 + 1e-5):  # A sum of roundings may pass 1; NaN does not.
                raise InputError(
                    f"Confidences are from {low} to {high}: give probabilities (after softmax, not "
                    "logits), between 0 and 1 and none of them NaN."
                )
        num = self.num_bins
        bins = (confidence * num).ceil_().sub_(1).clamp_(0, num - 1).int()
        # Two codes for each bin, wrong and right; 0 for ignored.
        right = label == prediction + 1
        codes = ((2 * bins + 1).add_(right) * label.clamp(max=1)).flatten()
        pixels = torch.bincount(codes, minlength=2 * num + 1)[1:].view(num, 2)
        # Sums of whole numbers, so exact and alike in any order.
        units = (confidence * CONFIDENCE_UNITS).round_().double().flatten()
        total = torch.bincount(codes, weights=units, minlength=2 * num + 1)[1:].view(num, 2)
        self._count(torch.cat([pixels.sum(1), pixels[:, 1], total.sum(1).long()]))

    def table(self) -> Int64[np.ndarray, "3 bins"]:
        """For `Metrics.calibration`: pixels of each bin, how many are right, sum of confidences.

        Confidences are in `CONFIDENCE_UNITS`.
        """
        return self.counts.cpu().numpy().reshape(3, self.num_bins)

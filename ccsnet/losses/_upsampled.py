"""Cross-entropy at the label's size of logits on a coarser grid, without their full-size map.

With 150 classes at 512x512 that map is 157 MB an image, its softmax and both their gradients as
much each, and to move them takes half of a training step. Here a strip of rows at a time is
resized, and what it adds to the loss and to the gradient of the grid's logits is summed up before
the next; the backward pass has nothing left to do.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# B images, N classes, (h, w) the logits' grid, (H, W) the label's.

STRIP = {"cpu": 2**20}
"""Numbers of a strip: few enough that caches hold them."""
STRIP_ELSEWHERE = 2**26
MIN_ROWS = 8
"""Of a strip: each reads two rows of the grid besides those that it stands for."""


def upsampled_cross_entropy(
    logits: Float[Tensor, "B N h w"],
    label: Int[Tensor, "B H W"],
    ignore_index: int,
    class_weights: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """The sum over the valid pixels of the (weighted) cross-entropy of bilinearly resized logits.

    Equal, up to rounding, to `F.cross_entropy` of `F.interpolate`, corners not aligned.

    Raises:
        RuntimeError: The label has a class that the logits have not, and that is not ignored.
    """
    total: Tensor = _Upsampled.apply(logits.float(), label, ignore_index, class_weights)
    return total


@lru_cache(maxsize=64)
def _weights(length: int, new_length: int) -> Float[Tensor, "new_length length"]:
    """What each new place takes of each old one, by torch's own linear interpolation."""
    columns = F.interpolate(torch.eye(length)[None], size=new_length, mode="linear")
    return columns[0].t().contiguous()


class _Upsampled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, label: Tensor, ignore_index: int, class_weights: Tensor | None
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        ctx.save_for_backward(gradient)
        if logits.is_meta:  # Only what is kept is asked for.
            return logits.new_zeros(())
        with torch.autocast(logits.device.type, enabled=False):
            totals = [
                _of_image(
                    logits[i].contiguous(),
                    label[i],
                    ignore_index,
                    class_weights,
                    None if gradient is None else gradient[i],
                )
                for i in range(len(logits))
            ]
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


def _of_image(
    logits: Float[Tensor, "N h w"],
    label: Int[Tensor, "H W"],
    ignore_index: int,
    class_weights: Float[Tensor, " N"] | None,
    gradient: Float[Tensor, "N h w"] | None,
) -> Float[Tensor, ""]:
    """The sum over an image's pixels; its derivative goes into `gradient`."""
    num_classes, height, width = logits.shape
    rows, columns = label.shape
    across, down = _weights(width, columns).to(logits.device), _weights(height, rows)
    # As wide as the label, and as high as the grid.
    wide = F.interpolate(logits, size=columns, mode="linear") if columns != width else logits
    wide_gradient = None if gradient is None else torch.zeros_like(wide)
    total = logits.new_zeros(())
    most = STRIP.get(logits.device.type, STRIP_ELSEWHERE)
    step = max(MIN_ROWS, most // (num_classes * columns))
    for start in range(0, rows, step):
        weights = down[start : start + step]
        read = weights.any(0).nonzero()
        part = slice(int(read[0]), int(read[-1]) + 1)
        weights = weights[:, part].contiguous().to(logits.device)
        scores = torch.matmul(weights, wide[:, part]).flatten(1)
        pixels = label[start : start + step].flatten()
        valid = pixels != ignore_index
        pixels = pixels.where(valid, 0)
        count = valid.float() if class_weights is None else class_weights.to(logits)[pixels] * valid
        scores -= scores.amax(0)
        own = scores.gather(0, pixels[None])[0]
        shares = scores.exp_()
        sums = shares.sum(0)
        # Where nothing counts, what is no number does not either.
        total += ((sums.log() - own) * count).where(valid, 0).sum()
        if wide_gradient is None:
            continue
        shares *= count / sums
        shares.scatter_add_(0, pixels[None], -count[None])
        shares = shares.view(num_classes, -1, columns)
        wide_gradient[:, part] += torch.matmul(weights.t(), shares)
    if gradient is not None and wide_gradient is not None:
        gradient.copy_(torch.matmul(wide_gradient, across) if columns != width else wide_gradient)
    return total

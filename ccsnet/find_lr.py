"""The learning-rate range test: let the rate grow until the loss explodes, and look at the curve.

Source: Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure

from ccsnet.assemble import assemble, in_mode
from ccsnet.config import RunConfig
from ccsnet.data.loading import training_batches
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.optim import create_optimizer
from ccsnet.parallel import Processes
from ccsnet.precision import in_memory_order
from ccsnet.progress import Reporter, Silent

EXPLODED = 4.0  # Times the smallest loss; what comes then tells nothing more.
SMOOTHING = 0.9  # Share that a step keeps of the mean loss before it.
LEAST_STEPS = 20


class RangeTest(NamedTuple):
    """The rates that were tried, and what the loss was."""

    rates: Float64[np.ndarray, " steps"]
    losses: Float64[np.ndarray, " steps"]
    """Smoothed."""

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest: a good peak rate for most runs.

        The first tenth and the end, where it rises again, are left out.
        """
        lowest = int(self.losses.argmin())
        first = len(self.losses) // 10
        if lowest - first < 3:
            return float(self.rates[max(lowest - 1, 0)])
        # Over the rate's logarithm, in which the steps are equal.
        slopes = np.gradient(self.losses[first : lowest + 1])
        return float(self.rates[first + int(slopes.argmin())])

    @property
    def largest(self) -> float:
        """A tenth of the rate with the smallest loss: what should not be passed."""
        return float(self.rates[int(self.losses.argmin())]) / 10


def find_lr(
    config: RunConfig,
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    reporter: Reporter | None = None,
) -> RangeTest:
    """Train for some steps at rates that grow from step to step by a factor; keep nothing.

    The ratio of the groups' rates (heads to backbone, layer by layer) is that of the run.

    Args:
        config: The run's settings. Its learning rate and its schedule play no part.
        lowest: The first rate, of the backbone.
        highest: The last, if the loss does not explode before.
        steps: How many rates.
        reporter: Who is told how it goes.

    Raises:
        InputError: The settings or the data cannot be used, or the loss is no number from the
            first steps on.
    """
    if not 0 < lowest < highest or steps < LEAST_STEPS:
        raise InputError(
            f"The rates go from {lowest} to {highest} in {steps} steps; they must be above 0 and "
            f"grow, in at least {LEAST_STEPS} steps."
        )
    reporter = reporter or Silent()
    processes = Processes(cpu=config.train.cpu)
    if processes.num > 1:
        raise InputError("A learning rate is looked for by one process: leave out torchrun.")
    config, spec, root, model, loss, mode = assemble(config, processes, reporter)
    network = in_mode(model, mode, config.train, processes.device)
    optimizer = create_optimizer(model, config.optim)
    scaler = torch.amp.GradScaler(processes.device.type, enabled=mode.precision == "fp16")
    batches = training_batches(
        spec,
        root,
        config.data,
        batch_size=config.train.batch_size // config.train.accumulate,
        seed=config.train.seed,
        steps=steps,
    )
    rates, losses, mean = [], [], 0.0
    reporter.start("finding lr", steps)
    for step, batch in enumerate(batches):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate / config.optim.lr
        output = network(in_memory_order(batch.image.to(processes.device), mode))
        terms = loss(output, batch.label.to(processes.device))
        total = torch.stack(list(terms.values())).sum()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * total.item()
        smooth = mean / (1 - SMOOTHING ** (step + 1))  # As if it had begun with the first loss.
        if not math.isfinite(smooth) or (losses and smooth > EXPLODED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        scaler.scale(total).backward()
        if config.optim.clip_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        reporter.advance(1, loss=smooth, lr=rate)
    reporter.end()
    if len(losses) < LEAST_STEPS // 2:
        raise InputError(
            f"The loss was no number, or exploded, within {len(losses) + 1} steps, at a rate of "
            f"{lowest:.0e}. Look at the data (`ccsnet data check`), or use --precision float32."
        )
    return RangeTest(np.array(rates), np.array(losses))


def draw_range_test(test: RangeTest, path: Path) -> None:
    """The curve, with what it suggests, as a PNG."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="#036")
    axes.axvline(test.steepest, color="#080", linestyle="--", label="falls fastest")
    axes.axvline(test.largest, color="#b40", linestyle=":", label="do not pass")
    axes.set(xscale="log", xlabel="learning rate of the backbone", ylabel="loss, smoothed")
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=120, bbox_inches="tight")

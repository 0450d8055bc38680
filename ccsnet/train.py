"""The training loop: load, forward, loss, step, top to bottom."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ccsnet.assemble import assemble, in_mode
from ccsnet.averaging import WeightAverage
from ccsnet.checkpoint import BEST, LAST, Checkpoint, ClassInfo
from ccsnet.config import RunConfig, to_json
from ccsnet.data.loading import Batch, Sample, evaluation_samples, training_batches
from ccsnet.data.opening import test_sides
from ccsnet.data.parallel import num_processors
from ccsnet.errors import NotFiniteError
from ccsnet.evaluate import Evaluation, evaluate, evaluation_to_json
from ccsnet.files import atomic_path
from ccsnet.keeping import Checkpoints, Learner
from ccsnet.lost_process import explain_timeout
from ccsnet.memory import peak_memory
from ccsnet.metrics import Metrics
from ccsnet.optim import create_optimizer, set_lr
from ccsnet.parallel import Processes, gradients_kept_back
from ccsnet.pictures import MAX_PICTURES, validation_pictures
from ccsnet.precision import in_memory_order
from ccsnet.preflight import check_settings
from ccsnet.progress import Reporter, Silent
from ccsnet.run_folder import (
    BEST_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    check_folder,
    is_among_best,
    kept,
    locked,
    newest,
    older_name,
    prune_worst,
)
from ccsnet.runlog import RunLog, bottleneck_note
from ccsnet.sharding import shard, whole
from ccsnet.stopping import (
    INTERRUPTED_STATUS,
    StopRequest,
    StopSignals,
    request_flags,
    request_of,
)

SAVE_SECONDS = 15 * 60.0
"""A run that is killed loses no more than this."""

WAITS_LOOKED_AT = 50  # Steps, before data are called the bottleneck.


class Interrupted(Exception):
    """Training was stopped from outside, after saving; the text says how to go on.

    Attributes:
        status: What a program should exit with: 130 after Ctrl-C, 75 ("resume me") after the
            signals of schedulers.
    """

    def __init__(self, text: str, status: int = INTERRUPTED_STATUS) -> None:
        super().__init__(text)
        self.status = status


class TrainingResult(NamedTuple):
    """What a finished run is."""

    out: Path
    best_miou: float
    metrics: Metrics
    """Of the last validation."""
    seconds: float
    """Of training, validation left out, over all sittings."""


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool | Literal["auto"] = False,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train a model and leave config, checkpoints and logs in a folder.

    Args:
        config: What to train, on what, how.
        out: The run's folder: config.json, best.safetensors, last.safetensors, log.csv,
            validation.csv, best.json, metrics.json and the trackers' files.
        resume: Go on from the folder's newest good checkpoint; "auto": if it has one, else start.
            The result is that of a run never stopped.
        reporter: Who is told how it goes.

    Raises:
        InputError: Something in the configuration, the data or the folder cannot be used.
        FileNotFoundError: Data, weights or the checkpoint to resume from are missing.
        FloatingPointError: The loss is not a number.
        OSError: The disk is full.
        ConnectionError: Another process of the run was lost, or did not answer in time.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the last checkpoint is written.
    """
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        try:
            run = _Run(config, out, resume, reporter or Silent(), signals, stack)
        except RuntimeError as error:
            raise _explained(error) from error
        try:
            run.go()
        except KeyboardInterrupt as request:
            signals.ignore()
            status = getattr(request, "status", INTERRUPTED_STATUS)
            raise Interrupted(run.stop(), status) from None
        except RuntimeError as error:
            raise _explained(error) from error
        return run.finish()


def _explained(error: RuntimeError) -> Exception:
    """The error, or what is behind it: another process that was lost."""
    text = explain_timeout(error)
    return error if text is None else ConnectionError(text)


class _Run:
    """What the loop works on, from a run's first step, or the one it goes on from, to its last."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        resume: bool | Literal["auto"],
        reporter: Reporter,
        signals: StopSignals,
        stack: contextlib.ExitStack,
    ) -> None:
        self.processes = Processes(cpu=config.train.cpu, timeout=config.train.timeout)
        check_settings(config, self.processes.num)
        self.is_main, self.signals, self.out = self.processes.is_main, signals, out
        self.reporter = reporter = reporter if self.is_main else Silent()
        if self.is_main:
            stack.enter_context(locked(out))
        start = self._start(resume)
        self.processes.wait()  # All have looked before one writes there.

        parts = assemble(config, self.processes, reporter, start)
        self.config = config = parts.config
        self.spec, self.root, self.model = parts.spec, parts.root, parts.model
        self.loss, self.mode = parts.loss, parts.mode
        sides = test_sides(self.spec, config.data)
        self.info = replace(ClassInfo.of(self.spec), short_side=sides[0], long_side=sides[1])

        self.step = 0 if start is None else start.step
        self.whole = True  # False while the weights are between two steps.
        self.finished = False
        self.average = None
        if config.train.ema is not None:
            self.average = WeightAverage(self.model, config.train.ema, self.step)
        self.optimizer = create_optimizer(self.model, config.optim)
        # fp16 has no room for small gradients unless they are scaled up.
        fp16 = self.mode.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=fp16)
        if config.train.shard:
            shard(self.model, self.optimizer)
            if self.average is not None:
                shard(self.average.model)
        learner = Learner(self.model, self.optimizer, self.scaler, self.average)
        self.checkpoints = Checkpoints(out, learner, config, self.info, self.processes)
        if start is not None:
            self.checkpoints.restore(start)
        network = in_mode(self.model, self.mode, config.train, self.processes.device)
        self.network: nn.Module = network if config.train.shard else self.processes.copied(network)

        self.miou = None if start is None else start.miou  # Of the weights as they are.
        self.best: float = -math.inf
        self.best_step = 0
        if start is not None and start.best_miou is not None:
            self.best, self.best_step = start.best_miou, start.best_step or 0
        self.metrics: Metrics | None = None
        self.num_images = len(self.spec.pairs(self.root, config.data.train_split))
        self.log = None
        if self.is_main:
            log = self.log = RunLog(
                out,
                resume_at=self.step,
                trackers=config.train.trackers,
                config=config,
                note=reporter.note,
            )
            stack.callback(lambda: log.close(finished=self.finished))
            # Now the folder holds a run: a tracker that refuses leaves it free.
            _write_text(out / CONFIG_FILE, to_json(config))
        stack.callback(reporter.end)
        self.seconds = self.log.seconds if self.log else 0.0
        self.waits: deque[tuple[float, float]] = deque(maxlen=WAITS_LOOKED_AT)
        self.tick = time.perf_counter()
        if self.processes.num > 1:
            signals.hold()  # What one hears, all must hear before any of them stops.

    def _start(self, resume: bool | Literal["auto"]) -> Checkpoint | None:
        """The checkpoint to go on from."""
        if resume == "auto":
            resume = bool(kept(self.out, LAST))
            if not resume and not kept(self.out, BEST):
                return None  # What a start that saved nothing has left is no loss.
        check_folder(self.out, resume=resume)
        if not resume:
            return None
        start, troubles = newest(self.out)
        for trouble in troubles:
            self.reporter.note(f"Going on from an older checkpoint: {trouble}")
        return start

    def go(self) -> None:
        """The loop.

        Raises:
            KeyboardInterrupt: A signal came.
        """
        if self.validation_is_due():  # Stopped before it, last time.
            self.validate()
        if self.is_over():
            return
        self.start_bar()
        for batch, wait in self.batches():
            with self.signals.held():
                self.optimize(batch, wait)
            if self.validation_is_due():
                self.validate()
                if self.is_over():
                    return
                self.start_bar()

    def start_bar(self) -> None:
        """Show how far training is."""
        self.reporter.start("training", self.config.train.steps, self.step)

    def batches(self) -> Iterator[tuple[Batch, float]]:
        """This process's share of what is left, with the seconds that were spent waiting for it."""
        loader = training_batches(
            self.spec,
            self.root,
            self.config.data,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            steps=self.config.train.steps,
            start_step=self.step,
            rank=self.processes.rank,
            world_size=self.processes.num,
        )
        self.tick = time.perf_counter()
        for batch in loader:
            yield batch, time.perf_counter() - self.tick
            self.tick = time.perf_counter()

    def optimize(self, batch: Batch, wait: float = 0.0) -> None:
        """One optimizer step, and a checkpoint if one is due.

        Raises:
            FloatingPointError: The loss is not a number.
            StopRequest: A signal has reached one of several processes.
        """
        train, optim = self.config.train, self.config.optim
        set_lr(self.optimizer, self.step, train.steps, optim)
        # Dropout is a function of the step, so that a resumed run draws what it would have drawn.
        torch.manual_seed(_stream(train.seed, self.step, self.processes.rank))
        self.whole = False
        images, labels = batch.image.chunk(train.accumulate), batch.label.chunk(train.accumulate)
        # Everything that counts in the loss is counted first, over all passes and processes: so
        # their gradients add up to the whole batch's.
        counts = torch.stack([self.loss.counts(label) for label in labels]).sum(0)
        counts, request, save = self._agreed(counts)
        losses: dict[str, Tensor] = {}
        for number, (image, label) in enumerate(zip(images, labels, strict=True), start=1):
            with gradients_kept_back(self.network, last=number == len(images)):
                device = self.processes.device
                output = self.network(in_memory_order(image.to(device), self.mode))
                terms = self.loss(output, label.to(device), counts)
                # Averaged over the processes this is the sum of their shares.
                total = torch.stack(list(terms.values())).sum() * self.processes.num
                self.scaler.scale(total).backward()
            for name, term in terms.items():
                losses[name] = losses.get(name, 0) + term.detach()
        values = self.processes.sum(torch.stack(list(losses.values()))).tolist()
        shown = dict(zip(losses, values, strict=True))
        if not math.isfinite(sum(values)):
            names = self.processes.gather(batch.names)
            raise FloatingPointError(_not_a_number(self.step + 1, shown, names))
        if optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model)
        self.step, self.miou, self.whole = self.step + 1, None, True
        self._record(shown, wait)
        if save and not self.validation_is_due():
            self.save(LAST)
        if request is not None:
            raise request

    def _agreed(self, counts: Tensor) -> tuple[Tensor, StopRequest | None, bool]:
        """The counts of all processes; whether one of them is to stop; whether a save is due."""
        every = self.config.train.save_every
        if every is not None:
            due = (self.step + 1) % every == 0
        else:
            due = self.is_main and time.perf_counter() - self.checkpoints.saved_at > SAVE_SECONDS
        if self.processes.num == 1:
            return counts, None, due
        # One message for all of it: it costs every step its time.
        flags = torch.tensor([*request_flags(self.signals.asked), due], dtype=counts.dtype)
        shared = self.processes.sum(torch.cat([counts.cpu(), flags])).cpu()
        interrupted, terminated, due = (shared[-3:] > 0).tolist()
        return shared[:-3], request_of(interrupted, terminated), due

    def _agreed_request(self) -> StopRequest | None:
        """Whether one of the processes is to stop."""
        flags = self.processes.sum(torch.tensor(request_flags(self.signals.asked)))
        return request_of(*(flags > 0).tolist())

    def _record(self, losses: Mapping[str, float], wait: float) -> None:
        now = time.perf_counter()
        elapsed, self.tick = now - self.tick, now
        self.seconds += elapsed
        self.waits.append((wait, elapsed))
        share = sum(w for w, _ in self.waits) / sum(e for _, e in self.waits)
        rate = self.config.train.batch_size / elapsed
        loss = sum(losses.values())
        memory = peak_memory(self.processes.device)
        if self.log is not None:
            self.log.step(
                step=self.step,
                epoch=round(self.step * self.config.train.batch_size / self.num_images, 3),
                seconds=round(self.seconds, 3),
                lr=self.optimizer.param_groups[0]["lr"],
                loss=loss,
                coarse_loss=losses.get("coarse", 0.0),
                images_per_second=round(rate, 3),
                wait=round(min(wait / elapsed, 1.0), 3),
                memory_gib=round(memory, 3),
            )
        if self.waits.maxlen is not None and len(self.waits) == self.waits.maxlen:
            cores = max(num_processors() // self.processes.num_here, 1)
            note = bottleneck_note(share, self.config.data.num_workers, cores)
            if note is not None:
                self.reporter.note(note)
                self.waits = deque(self.waits, maxlen=None)  # Said once.
        best = self.best if math.isfinite(self.best) else None
        self.reporter.advance(1, loss=loss, mIoU=best, images_s=rate, wait=share, GiB=memory)

    def validation_is_due(self) -> bool:
        """Whether these weights should be validated and have not been."""
        train = self.config.train
        at_interval = self.step % train.validation_interval == 0 or self.step == train.steps
        return self.step > 0 and at_interval and self.miou is None

    def is_over(self) -> bool:
        """Whether all steps are done, or the last validations brought nothing."""
        train = self.config.train
        waited = self.step - self.best_step
        if self.step >= train.steps:
            return True
        if self.miou is None or train.patience is None:
            return False
        if waited < train.patience * train.validation_interval:
            return False
        self.reporter.note(
            f"Stopped at step {self.step}: no better mIoU for {train.patience} validations."
        )
        return True

    def validate(self) -> None:
        """Measure the model, and keep it."""
        evaluation = self._measure()
        with self.signals.held():  # What is measured once is kept whole: it is not measured again.
            self._keep(evaluation)

    def _keep(self, evaluation: Evaluation) -> None:
        """Keep the model, with what was measured: as the last, and if it is among the best."""
        if self.processes.main_says(lambda: not kept(self.out, LAST)):
            self.save(LAST)  # Killed with a best and no last, a run could not go on.
        self.metrics = metrics = evaluation.metrics
        self.miou, keep = metrics.miou, self.config.train.keep_best
        if self.log is not None:
            self.log.validation(
                step=self.step,
                miou=self.miou,
                pixel_accuracy=metrics.pixel_accuracy,
                class_iou=dict(zip(metrics.classes, metrics.iou.tolist(), strict=True)),
            )
        if not self.miou <= self.best:  # Also when nothing could be counted: NaN.
            self.best, self.best_step = self.miou, self.step
            self.save(BEST)
            if self.is_main:
                _write_text(self.out / BEST_FILE, evaluation_to_json(evaluation, self.step))
        elif self.processes.main_says(lambda: is_among_best(self.out, metrics.miou, keep)):
            self.save(older_name(BEST, self.step))
        if self.is_main:
            prune_worst(self.out, keep)
        self.save(LAST)

    def _measure(self) -> Evaluation:
        samples = evaluation_samples(
            self.spec,
            self.root,
            self.config.data,
            self.config.data.val_split,
            rank=self.processes.rank,
            world_size=self.processes.num,
            multiple=32 if self.spec.window is None else 1,
        )
        self.reporter.start("validating", len(samples))
        shown: list[tuple[Sample, Tensor]] = []

        def watch(sample: Sample, prediction: Tensor) -> None:
            if self.log is not None and len(shown) < MAX_PICTURES:
                shown.append((sample, prediction))

        try:
            with whole(self.checkpoints.evaluated):
                measured = evaluate(
                    self.checkpoints.evaluated,
                    samples,
                    self.spec.classes,
                    ignore_index=self.spec.ignore_index,
                    batch_size=self.config.train.validate_batch_size,
                    window=self.spec.window,
                    per_image=True,
                    progress=self.reporter.advance,
                    watch=watch,
                    processes=self.processes,
                    stop=lambda: self.signals.asked != 0,
                )
        except NotFiniteError as error:
            raise FloatingPointError(
                f"After step {self.step} the model predicts numbers that are NaN or infinite. "
                "Checkpoints are from before it. Lower --lr, set --clip-norm 1, or use "
                "--precision float32."
            ) from error
        request = self._agreed_request()
        if request is not None:
            raise request
        if self.log is not None and shown and self.miou is None:
            pictures, predictions = zip(*shown, strict=True)
            self.log.pictures(self.step, validation_pictures(pictures, predictions, self.spec))
        return measured

    def save(self, name: str) -> None:
        """Write a checkpoint."""
        self.checkpoints.save(
            name,
            step=self.step,
            miou=self.miou,
            best_miou=self.best if math.isfinite(self.best) else None,
            best_step=self.best_step,
        )

    def stop(self) -> str:
        """Save before the end; returns what to tell the user."""
        steps = self.config.train.steps
        if not self.whole:
            return (
                f"Stopped within step {self.step + 1} of {steps}, which cannot be saved; "
                "checkpoints are from before it."
            )
        self.save(LAST)
        return (
            f"Stopped after step {self.step} of {steps}; all is saved. "
            f"Go on with: ccsnet train --resume {self.out}"
        )

    def finish(self) -> TrainingResult:
        """Write the figures of the finished run."""
        metrics = self.metrics or self._measure().metrics  # None: resumed when all was done.
        self.reporter.end()
        if self.is_main:
            figures = {"step": self.step, "best_miou": self.best, **metrics.to_dict()}
            _write_text(self.out / METRICS_FILE, json.dumps(figures, indent=2))
        self.finished = True
        return TrainingResult(self.out, self.best, metrics, self.seconds)


def _not_a_number(step: int, losses: Mapping[str, float], names: list[str]) -> str:
    return (
        f"The loss of step {step} is not a number ({dict(losses)}); the images were "
        f"{', '.join(names)}. Checkpoints are from before it. Lower --lr, set --clip-norm 1, "
        "use --precision float32, or look at these images."
    )


def _stream(seed: int, step: int, process: int) -> int:
    """A seed for one step of one process."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text + "\n")

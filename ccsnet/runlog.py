"""The record of a run: log.csv has a row for each step, validation.csv for each validation.

TensorBoard's files hold the same.
"""

import csv
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ccsnet.files import atomic_path

LOG_FILE, VALIDATION_FILE = "log.csv", "validation.csv"
COLUMNS = {
    LOG_FILE: ("step", "epoch", "seconds", "lr", "loss", "coarse_loss", "images_per_second"),
    VALIDATION_FILE: ("step", "miou", "pixel_accuracy"),
}


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log file."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class RunLog:
    """Writes the logs of a run, or goes on with them.

    Args:
        out: The run's folder.
        resume_at: The step that the run goes on from; later rows are of steps to be done again.

    Attributes:
        seconds: Training time of the rows that are kept.
    """

    def __init__(self, out: Path, resume_at: int = 0) -> None:
        kept = {name: _kept_rows(out / name, resume_at) for name in COLUMNS}
        self.seconds = float(kept[LOG_FILE][-1]["seconds"]) if kept[LOG_FILE] else 0.0
        self._files, self._writers = [], {}
        for name, columns in COLUMNS.items():
            with atomic_path(out / name) as aside, aside.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(kept[name])
            file = (out / name).open("a", newline="", buffering=1)  # A row is written when whole.
            self._files.append(file)
            self._writers[name] = csv.DictWriter(file, columns)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=resume_at or None)

    def step(
        self,
        *,
        step: int,
        epoch: float,
        seconds: float,
        lr: float,
        loss: float,
        coarse_loss: float,
        images_per_second: float,
    ) -> None:
        """Add a training step. The coarse loss is part of the loss."""
        values = {"epoch": epoch, "seconds": seconds, "lr": lr, "loss": loss}
        values |= {"coarse_loss": coarse_loss, "images_per_second": images_per_second}
        self._write(LOG_FILE, "train", step, values)

    def validation(self, *, step: int, miou: float, pixel_accuracy: float) -> None:
        """Add a validation after a step."""
        values = {"miou": miou, "pixel_accuracy": pixel_accuracy}
        self._write(VALIDATION_FILE, "val", step, values)

    def _write(self, name: str, group: str, step: int, values: dict[str, float]) -> None:
        self._writers[name].writerow({"step": step, **values})
        for key, value in values.items():
            self._board.add_scalar(f"{group}/{key}", value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        for file in self._files:
            file.close()
        self._board.close()


def _kept_rows(path: Path, last_step: int) -> list[dict[str, str]]:
    if not last_step or not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= last_step]

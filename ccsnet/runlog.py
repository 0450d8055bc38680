"""The record of a run: log.csv, one row a step, and the same for TensorBoard."""

import csv
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ccsnet.files import atomic_path

LOG_FILE = "log.csv"
COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "lr",
    "loss",
    "coarse_loss",
    "images_per_second",
    "val_miou",
    "val_pixel_accuracy",
)


def read_log(out: Path) -> list[dict[str, float]]:
    """The rows of a run's log; a value that was not measured at a step is left out of its row."""
    with (out / LOG_FILE).open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


class RunLog:
    """Writes the log of a run, or goes on with it.

    Args:
        out: The run's folder.
        resume_at: The step that the run goes on from; later rows are of steps to be done again.

    Attributes:
        seconds: Training time of the rows that are kept.
    """

    def __init__(self, out: Path, resume_at: int = 0) -> None:
        path = out / LOG_FILE
        rows: list[dict[str, str]] = []
        if resume_at and path.is_file():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_at]
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        with atomic_path(path) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._file = path.open("a", newline="")
        self._rows = csv.DictWriter(self._file, COLUMNS)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=resume_at or None)

    def write(self, row: Mapping[str, int | float | None]) -> None:
        """Add a step's values."""
        self._rows.writerow(row)
        self._file.flush()
        for name, value in row.items():
            if name != "step" and value is not None:
                group = "val" if name.startswith("val_") else "train"
                tag = f"{group}/{name.removeprefix('val_')}"
                self._board.add_scalar(tag, value, int(row["step"] or 0))

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._board.close()

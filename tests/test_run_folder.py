import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ccsnet import checkpoint as ckpt
from ccsnet.checkpoint import BEST, LAST, ClassInfo, check_whole
from ccsnet.errors import InputError
from ccsnet.run_folder import (
    LOCK_FILE,
    check_folder,
    is_among_best,
    kept,
    locked,
    newest,
    older_name,
    prune,
    prune_worst,
    put_by,
)
from ccsnet.segmenter import create_segmenter
from tests.shapes import CLASSES, COLOURS, tiny_config, tiny_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_segmenter(tiny_model(), num_classes=3)


@pytest.fixture
def save(tmp_path, model):
    """Writes a checkpoint of a name, a step and a mIoU."""

    def write(name: str, step: int, miou: float | None = None) -> Path:
        info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS)
        path = tmp_path / name
        config = tiny_config(Path("shapes"))
        ckpt.save_checkpoint(
            path, model.state_dict(), config, info, step=step, miou=miou, best_miou=miou
        )
        return path

    return write


def test_the_older_one_is_put_by(save, tmp_path):
    for step in (2, 4, 6, 8):
        put_by(tmp_path, LAST, step)
        save(LAST, step)
        prune(tmp_path, LAST, 3)
    names = [LAST, "last-00000006.safetensors", "last-00000004.safetensors"]
    assert [path.name for path in kept(tmp_path, LAST)] == names
    found, troubles = newest(tmp_path)
    assert (found.step, troubles) == (8, [])


def test_a_step_that_is_saved_again_takes_the_place_of_the_first(save, tmp_path):
    for _ in range(2):
        put_by(tmp_path, LAST, 4)
        save(LAST, 4)
    put_by(tmp_path, LAST, 2)  # Work that is done again.
    save(LAST, 2)
    assert [path.name for path in kept(tmp_path, LAST)] == [LAST]


def damages(path: Path) -> list[bytes]:
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-200] ^= 16
    return [b"", data[: len(data) // 2], bytes(flipped), b"\0" * len(data), data[:-1]]


@pytest.mark.parametrize("damage", range(5))
def test_a_damaged_newest_one_is_passed_over(save, tmp_path, damage):
    save(older_name(LAST, 2), 2)
    path = save(LAST, 4)
    path.write_bytes(damages(path)[damage])
    with pytest.raises(InputError, match=r"last\.safetensors is (damaged|not a whole)"):
        check_whole(path)
    found, (trouble,) = newest(tmp_path)
    assert found.step == 2
    assert "last.safetensors" in trouble


def test_killed_between_the_two_renames(save, tmp_path):
    save(older_name(LAST, 2), 2)
    assert newest(tmp_path)[0].step == 2
    check_folder(tmp_path, resume=True)


def test_none_is_good(save, tmp_path):
    for name, step in ((LAST, 4), (older_name(LAST, 2), 2)):
        save(name, step).write_bytes(b"")
    with pytest.raises(InputError, match=r"No checkpoint can be resumed from.*last-00000002"):
        newest(tmp_path)
    assert newest(tmp_path / "elsewhere") == (None, [])


def test_the_best_are_kept(save, tmp_path):
    best = -1.0
    for step, miou in enumerate((0.2, 0.5, 0.4, 0.3, 0.6, 0.1), start=1):
        if miou > best:
            best = miou
            put_by(tmp_path, BEST, step)
            save(BEST, step, miou)
        elif is_among_best(tmp_path, miou, 3):
            save(older_name(BEST, step), step, miou)
        prune_worst(tmp_path, 3)
    found = {path.name: ckpt.read_checkpoint(path).miou for path in kept(tmp_path, BEST)}
    assert found == {BEST: 0.6, older_name(BEST, 2): 0.5, older_name(BEST, 3): 0.4}


def test_one_best_needs_no_others(save, tmp_path):
    save(BEST, 1, 0.5)
    assert not is_among_best(tmp_path, 0.4, 1)
    assert is_among_best(tmp_path, 0.4, 2)


def test_files_of_others_are_no_checkpoints(save, tmp_path):
    save(LAST, 4)
    for name in ("last-mine.safetensors", "last-1.safetensors", "last-00000001.pth"):
        (tmp_path / name).write_bytes(b"mine")
    prune(tmp_path, LAST, 1)
    assert len(kept(tmp_path, LAST)) == 1
    assert len(list(tmp_path.glob("last-*"))) == 3


def test_the_lock_keeps_others_out(tmp_path):
    out = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from ccsnet.run_folder import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=rf"process {other.pid}\) is training in {out}"):
            locked(out).__enter__()
        other.kill()
    with locked(out):  # A lock that its owner did not give back holds nobody up.
        assert (out / LOCK_FILE).exists()
    assert not (out / LOCK_FILE).exists()


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "log.csv").touch()
    assert (tmp_path / "run" / "log.csv").exists()


def test_two_versions(save, tmp_path):
    """A file without a checksum, as an early version wrote it, or with another's state."""
    path = save(LAST, 4)
    from safetensors.torch import load_file, save_file

    with ckpt._opened(path) as file:
        metadata = dict(file.metadata())
    newer = metadata | {"format": "ccsnet-2"}
    save_file(load_file(path), path, newer)
    with pytest.raises(InputError, match="Another version of ccsnet wrote it: pip install --up"):
        ckpt.read_checkpoint(path)


def test_a_full_disk(tmp_path, model):
    """The system refuses to let the file grow, as it does where a disk is full."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from tests.test_run_folder import write_one\n"
        "write_one(Path(sys.argv[1]), 2)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_one(Path(sys.argv[1]), 4)\n"
        "except OSError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "could not be written" in result.stdout
    assert "Checkpoints from before it are whole. Make room on the disk" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert newest(tmp_path)[0].step == 2


def write_one(out: Path, step: int) -> None:
    model = create_segmenter(tiny_model(), num_classes=3)
    info = ClassInfo(dataset="shapes", classes=CLASSES, colours=COLOURS)
    put = lambda: put_by(out, LAST, step)  # noqa: E731
    config = tiny_config(Path("shapes"))
    config = replace(config, train=replace(config.train, steps=9))
    ckpt.save_checkpoint(
        out / LAST, model.state_dict(), config, info, step=step, before_replacing=put
    )

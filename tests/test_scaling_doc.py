"""docs/scaling.md: its commands are ones that the programs take, its script does what it says."""

import dataclasses
import os
import re
import signal
import subprocess
import time
import typing
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import ccsnet.train
from benchmarks import scaling
from ccsnet import cli
from ccsnet.config import RunConfig
from ccsnet.train import Interrupted
from tests import pages
from tests.pages import ROOT

PAGE = pages.text_of("docs/scaling.md")
SCRIPT = ROOT / "docs/slurm/train.sbatch"
COMMANDS = pages.commands("docs/scaling.md")
OF_THE_VERB = {"--recipe", "--resume", "--out"}
OF_OTHERS = {"--signal", "--requeue", "--cpus-per-task", "--print", "--step-seconds"}


def settings(kind) -> dict[str, type]:
    """Every setting of a run, by its name."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= settings(hints[field.name])
        else:
            found[field.name] = hints[field.name]
    return found


def allowed_options() -> set[str]:
    options = OF_THE_VERB | OF_OTHERS
    for name, kind in settings(RunConfig).items():
        option = name.replace("_", "-")
        options |= {f"--{option}", f"--no-{option}"} if kind is bool else {f"--{option}"}
    return options


def arguments_of_ccsnet(command: list[str]) -> list[str]:
    """What `ccsnet train` gets of a command."""
    if command[0] == "sbatch":
        return command[2:]
    start = command.index("ccsnet")
    assert command[start - 1 : start + 2] == ["-m", "ccsnet", "train"]
    return command[start + 2 :]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c)[:60])
def test_training_takes_the_commands(command, tmp_path, monkeypatch, capsys):
    """The real command line reads them; only what it would start is left out."""
    started = []

    def train(config, out, *, resume, reporter):
        started.append((config, out, resume))
        raise Interrupted("not trained", 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ccsnet.train, "train", train)
    given = arguments_of_ccsnet(command)
    assert cli.run(["train", *given]) == 0, capsys.readouterr().err
    ((config, _, resume),) = started
    assert config.data.dataset == given[0]
    assert resume == ("auto" if "auto" in given else False)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c)[:60])
def test_launchers_take_the_commands(command):
    if command[0] == "torchrun":
        read = get_args_parser().parse_args(command[1:])
        assert (read.module, read.training_script) == (True, "ccsnet")
        assert read.standalone or read.rdzv_backend == "c10d"
    elif command[0] == "accelerate":
        read = launch_command_parser().parse_args(command[2:])
        assert (read.module, read.training_script) == (True, "ccsnet")
        assert read.num_processes == 8 * read.num_machines
    else:
        assert command[:2] == ["sbatch", str(SCRIPT.relative_to(ROOT))]


def test_batches_divide_by_the_processes():
    for command in COMMANDS:
        if command[0] != "torchrun":
            continue
        read = get_args_parser().parse_args(command[1:])
        given = arguments_of_ccsnet(command)
        batch = int(given[given.index("--batch-size") + 1]) if "--batch-size" in given else 16
        least, _, most = read.nnodes.partition(":")
        for nodes in range(int(least), int(most or least) + 1):
            assert batch % (nodes * int(read.nproc_per_node)) == 0, command


def test_options_in_the_text_exist():
    parsers = get_args_parser(), launch_command_parser()
    theirs = {option for parser in parsers for option in parser._option_string_actions}
    inline = " ".join(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
    named = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", inline))
    assert named
    assert named <= allowed_options() | theirs


@pytest.mark.slow
def test_tables_are_as_computed():
    assert scaling.between(PAGE) == scaling.made()


def test_a_ring_sends_what_it_should():
    # Each of 2 devices sends half of the bytes to be summed and half of the sums.
    assert scaling.reduce_seconds(100.0, 2, link=50.0) == 100 / 50
    assert scaling.reduce_seconds(100.0, 1, link=50.0) == 0


STANDS_FOR = {
    # srun: says what it got, and does with the warning what the test asks for.
    "srun": """#!/bin/bash
printf '%s\\n' "$@" > "$LOG/arguments"
trap 'echo warned > "$LOG/warned"; exit "$STATUS_WHEN_WARNED"' USR1
touch "$LOG/started"
for _ in $(seq "$TENTHS"); do sleep 0.1; done
exit "$STATUS"
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" > "$LOG/$1"; fi
""",
}


class Job:
    """The script under a SLURM made of two stand-ins."""

    def __init__(self, folder: Path, *, status=0, when_warned=1, tenths=0) -> None:
        self.folder = folder
        for name, text in STANDS_FOR.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
        log = {"LOG": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}
        log |= {"STATUS": str(status), "STATUS_WHEN_WARNED": str(when_warned)}
        log |= {"TENTHS": str(tenths)}
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "photos", "--out", "my runs/one"],
            env=os.environ | slurm | log,
            stdout=subprocess.DEVNULL,
        )

    def warn(self) -> None:
        for _ in range(100):
            if (self.folder / "started").exists():
                break
            time.sleep(0.05)
        self.process.send_signal(signal.SIGUSR1)

    def end(self) -> tuple[int, bool]:
        """Its status, and whether it was queued again."""
        status = self.process.wait(timeout=30)
        queued = self.folder / "requeue"
        assert not queued.exists() or queued.read_text() == "requeue 42\n"
        return status, queued.exists()


def test_script_starts_training_on_every_node(tmp_path):
    assert Job(tmp_path).end() == (0, False)
    words = (tmp_path / "arguments").read_text().splitlines()
    launch = words[words.index("torchrun") + 1 :]
    read = get_args_parser().parse_args(launch)
    assert (read.nnodes, read.rdzv_endpoint.partition(":")[0], read.rdzv_id) == ("2", "node7", "42")
    assert "SIGUSR1" in read.signals_to_handle.split(",")
    assert read.shutdown_timeout < 180, "the time that the warning leaves"
    expected = ["train", "photos", "--out", "my runs/one", "--resume", "auto"]
    assert read.training_script_args == expected


def test_script_is_queued_again_after_a_warning(tmp_path):
    job = Job(tmp_path, tenths=300, when_warned=1)
    job.warn()
    assert job.end() == (1, True)
    assert (tmp_path / "warned").exists()


def test_script_is_not_queued_again_when_training_was_done(tmp_path):
    job = Job(tmp_path, tenths=300, when_warned=0)
    job.warn()
    assert job.end() == (0, False)


@pytest.mark.parametrize(("status", "queued"), [(1, False), (2, False), (75, True)])
def test_script_tells_a_crash_from_a_stop(tmp_path, status, queued):
    assert Job(tmp_path, status=status).end() == (status, queued)


def test_script_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    directives = re.findall(r"^#SBATCH (--\S+)", SCRIPT.read_text("utf-8"), re.MULTILINE)
    assert {"--requeue", "--signal=B:USR1@180"} <= set(directives)

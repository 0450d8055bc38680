"""The load test runs, in its smallest form, and fails where the server does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_load_test():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", "--smallest"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.count(" | ") == 1]
    rows = {name.strip("| "): value.strip("| ") for name, value in lines}
    assert float(rows["served / in a loop"].split()[0]) > 0
    assert " x 200" in rows["0.05 minutes at full load"]
    assert "500" not in rows["40 malformed requests"]
    assert "503" in rows["a worker killed under full load"]

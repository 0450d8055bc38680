"""The server against its own document, by schemathesis: what it says it does, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.live import ROOT, serving

TOKEN = "0123456789abcdef0123"
PROGRAM = Path(sys.executable).with_name("st")


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="needs schemathesis, of the extra `dev`")
def test_it_does_what_its_document_says(checkpoint, tmp_path):
    """All checks, with a token; also of requests without one, and of such as are wrong."""
    with serving(checkpoint, env={"CCSNET_TOKEN": TOKEN}) as live:
        options = {
            "--header": f"Authorization: Bearer {TOKEN}",
            "--checks": "all",
            "--max-examples": "40",
            "--seed": "0",
            "--generation-database": "none",
        }
        done = subprocess.run(
            [PROGRAM, "run", f"{live.url}/openapi.json", *sum(options.items(), ()), "--no-color"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "SCHEMATHESIS_HOOKS": "tests.serve.schema_hooks",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        assert "5 selected / 5 total" in done.stdout
        assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 100
        assert live.health() == "ready"
        assert not any("Traceback" in line for line in live.log)

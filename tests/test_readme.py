"""What the README says runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from covshift.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs_in_order(tmp_path):
    script = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error::covshift.CovshiftWarning", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine.html").stat().st_size > 0


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"^make ([a-z -]+?)(?: +#.*)?$", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_every_covshift_command_of_the_readme_parses():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("covshift ")]
    assert lines
    command = get_command(app)
    for line in lines:
        name, *words = shlex.split(line.replace("[RUN.zarr ...]", ""), comments=True)[1:]
        subcommand = command.commands[name]
        subcommand.make_context(name, words, resilient_parsing=False).close()


def test_every_relative_link_of_the_readme_leads_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link

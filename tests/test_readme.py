"""`README.md` as a new user reads it: its quick start runs, and its links lead somewhere."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_quick_start_runs_as_it_stands(tmp_path):
    code = re.search(r"^## Quick start\n.*?^```python\n(.*?)^```", README, re.M | re.S)[1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "model.tflite").stat().st_size > 0
    assert "litert-xnnpack" in result.stdout


@pytest.mark.parametrize("first_line", ["# quickstart", "# tests"])
def test_its_two_commands_set_up_all_that_they_need(first_line):
    command = re.search(rf"^```sh\n{first_line}\b.*\n(.*)\n```", README, re.M)[1]
    assert command.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")


def test_its_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", README) if "://" not in link]
    assert "docs/pictures/fifths.png" in links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_its_figures_are_those_that_the_benchmarks_recorded():
    results = ROOT / "examples" / "benchmarks" / "results"
    ratios = {
        row["network"].split(",")[0]: row["ratio"]
        for row in json.loads((results / "latency.json").read_text("utf-8"))
    }
    latency = re.search(r"^\| latency of the `android` file .*$", README, re.M)[0]
    stated = re.findall(r"([\d.]+) \((\w+)\)", latency)
    assert [(f"{ratios[name]:.2f}", name) for _, name in stated] == stated
    cifar = json.loads((results / "quickstart_cifar10.json").read_text("utf-8"))
    accuracies = " / ".join(f"{100 * cifar[f'{of}_accuracy']:.2f}" for of in ("float", "dqmq"))
    assert (
        f"| {accuracies} % of 10,000 mixed-quality images; {cifar['deflated_bytes']:,} bytes;"
        in README
    )

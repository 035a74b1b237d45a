"""The short forms of the two long trials: see docs/robustness.md for what they came to in full."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fuzz_frames import ATTACKS
from toy_clients import ROOT


def run(*command: str) -> str:
    """Run a trial as its docstring says, on a machine that may be busy; returns what it printed."""
    trial = subprocess.run([sys.executable, "-m", *command, "--slack", "10"], cwd=ROOT, capture_output=True, text=True)
    assert trial.returncode == 0, trial.stdout + trial.stderr
    assert "failed: none" in trial.stdout
    return trial.stdout


@pytest.mark.parametrize("attack", [attack.__name__ for attack in ATTACKS])
def test_generator_under_attack_serves_an_honest_client_and_heeds_sigterm(attack: str) -> None:
    frames = 20 if attack == "enormous" else 500
    assert f"| {attack} | " in run("tests.fuzz_frames", "--attack", attack, "--frames", str(frames))


def test_generator_in_long_use_answers_as_at_first_and_does_not_grow() -> None:
    told = run("tests.soak", "--requests", "1500")
    assert len([line for line in told.splitlines() if line.startswith("| 1")]) >= 2

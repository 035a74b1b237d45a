"""Where a generator listens: one at a path, and what others have put or taken away there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_clients import SCRIPT, TIMEOUT_S, Toy, ask, assert_serves, client_of, surviving_toy, toy
from toy_generator import toy_answer

from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    with surviving_toy() as path:
        yield path


def test_path_without_a_generator_is_one_line_that_says_how_to_start_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(UserError) as failure:
        GeneratorClient.connect(path, script=SCRIPT)
    assert str(failure.value) == f"no generator at {path}: start one with: python {SCRIPT} --socket {path}"


def test_path_of_no_socket_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="a file is no socket: start a generator at another path"):
        GeneratorClient.connect(tmp_path / "a file", script=SCRIPT)
    with pytest.raises(UserError, match=f"python {SCRIPT} --socket '{tmp_path}/no where'$"):
        GeneratorClient.connect(tmp_path / "no where", script=SCRIPT)


def test_second_generator_on_the_same_path_is_refused(served: Path) -> None:
    second = Toy(served)
    output, log = second.process.communicate(timeout=TIMEOUT_S)
    assert (second.process.returncode, output, log) == (1, "", f"error: a generator is already serving {served}\n")
    assert_serves(served)


def test_socket_that_is_stale_makes_way(served: Path) -> None:
    with toy() as killed:
        killed.process.kill()
        killed.process.wait()
        assert killed.path.is_socket()
        with toy(path=killed.path) as successor:
            assert_serves(successor.path)


def test_lock_that_is_a_pipe_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    path = tmp_path / "private" / "socket"
    os.mkfifo(f"{path}.lock")
    refused = Toy(path)
    _, log = refused.process.communicate(timeout=TIMEOUT_S)
    assert log == f"error: --socket: {path}.lock cannot be locked: it is no regular file, move it away\n"
    assert Path(f"{path}.lock").is_fifo(), "it is not ours to remove"


def test_lock_that_is_a_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    path = tmp_path / "private" / "socket"
    Path(f"{path}.lock").mkdir()
    _, log = Toy(path).process.communicate(timeout=TIMEOUT_S)
    assert log == f"error: --socket: {path}.lock cannot be locked: Is a directory\n"


@pytest.mark.parametrize("loss", ["removed", "unreadable", "renamed", "replaced"])
def test_directory_that_is_taken_away_from_a_running_generator_costs_no_traceback(loss: str, tmp_path: Path) -> None:
    directory = tmp_path / "private"
    path = directory / "socket"
    with toy(path=path) as generator, client_of(path) as client:
        if loss == "removed":
            shutil.rmtree(directory)
        elif loss == "unreadable":
            directory.chmod(0)
        else:
            directory.rename(tmp_path / "elsewhere")
        if loss == "replaced":
            directory.mkdir()
            path.write_text("of somebody else")
        assert ask(client, [4]) == toy_answer([4], 1, 0)
        if os.getuid() or loss != "unreadable":  # root can read it
            with pytest.raises(UserError):
                GeneratorClient.connect(path, script=SCRIPT)
        assert generator.end() == (0, "engine closed\n", "")
        directory.exists() and directory.chmod(0o700)
        assert loss != "replaced" or path.read_text() == "of somebody else"

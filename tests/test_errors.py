"""What is told of an exception."""

import pytest

from hybridgraph.errors import MAX_CHARACTERS, UserError, one_line
from hybridgraph.sources.outside import explained
from hybridgraph.system.console import guarded


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("one\ntwo"), "one two"),
        (ValueError("no number"), "no number"),
        (FileNotFoundError(2, "No such file"), "[Errno 2] No such file"),
        (RuntimeError("it broke\n  on two lines"), "RuntimeError: it broke on two lines"),
        (KeyError("rope_type"), "KeyError: 'rope_type'"),
        (Exception("Model missing."), "Model missing."),
        (AssertionError(), "AssertionError"),
        (UserError("no \x1b[2J\x00 and no \udc80"), "no �[2J� and no �"),
        (UserError("a  path.json cannot be read\n\n"), "a  path.json cannot be read"),
    ],
)
def test_an_error_is_one_printable_line(error: Exception, told: str) -> None:
    assert one_line(error) == told


@pytest.mark.parametrize("make", [UserError, RuntimeError])
def test_a_long_error_keeps_its_beginning_and_its_end(make: type[Exception]) -> None:
    told = one_line(make(f"first {'x' * 2000} last"))
    assert len(told) == MAX_CHARACTERS == 500
    assert "first x" in told and "x…x" in told and told.endswith("x last")
    assert one_line(UserError("x" * 500)) == "x" * 500


def test_an_engines_error_is_told_whole_and_with_advice() -> None:
    assert explained(RuntimeError("startup failed:\nCUDA out of memory")).startswith(
        "RuntimeError: startup failed: CUDA out of memory: the GPU is too small"
    )


def test_a_users_error_is_one_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded(interrupted="")
    def entry() -> int:
        raise UserError("unknown model 'a\nb\x1b[1m'")

    assert entry() == 2
    assert capsys.readouterr().err == "error: unknown model 'a b�[1m'\n"

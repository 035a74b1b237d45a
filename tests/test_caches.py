"""Caches of compilers: in directories of the user's own, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridgraph.errors import UserError
from hybridgraph.system.caches import COMPILER_CACHES, keep_compiler_caches_private, make_private, private_cache

ROOT = Path(__file__).resolve().parent.parent
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
SOMEBODY = 54321


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in COMPILER_CACHES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_caches_of_ours_are_made_for_the_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep_compiler_caches_private()
    finally:
        os.umask(before)
    for variable in COMPILER_CACHES:
        place = Path(os.environ[variable])
        assert place.is_relative_to(tmp_path / "cache" / "hybridgraph")
        for directory in (place, place.parent, place.parents[1]):
            assert (directory.stat().st_uid, directory.stat().st_mode & 0o777) == (os.geteuid(), 0o700)
    assert len({os.environ[variable] for variable in COMPILER_CACHES}) == len(COMPILER_CACHES)
    keep_compiler_caches_private()  # as a child does, which inherits them


@pytest.mark.parametrize("mode", [0o777, 0o703, 0o1777])
@pytest.mark.parametrize("place", ["hybridgraph", "hybridgraph/inductor"])
def test_a_directory_made_beforehand_for_all_to_write_is_refused(tmp_path: Path, place: str, mode: int) -> None:
    planted = tmp_path / "cache" / place
    planted.mkdir(parents=True)
    planted.chmod(mode)
    if mode == 0o1777 and place == "hybridgraph":
        private_cache("inductor")  # as in the temporary directory: what is ours there, nobody can move away
    else:
        with pytest.raises(UserError, match=rf"{planted} may be written by others \(mode {mode:04o}"):
            private_cache("inductor")


@AS_ROOT
@pytest.mark.parametrize("place", ["", "hybridgraph", "hybridgraph/inductor"])
def test_a_directory_of_another_user_is_refused(tmp_path: Path, place: str) -> None:
    planted = tmp_path / "cache" / place
    planted.mkdir(parents=True)
    os.chown(planted, SOMEBODY, SOMEBODY)
    with pytest.raises(UserError, match=rf"{planted} belongs to user {SOMEBODY}: "):
        private_cache("inductor")


@AS_ROOT
def test_a_group_with_other_members_may_not_write_either(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(0o770)
    make_private(directory / "mine")  # root's own group has no other member
    os.chown(directory, 0, SOMEBODY)
    with pytest.raises(UserError, match=f"{directory} may be written by others"):
        make_private(directory / "mine")


@pytest.mark.parametrize("variable", COMPILER_CACHES)
def test_a_directory_that_the_user_chose_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.mkdir()
    link.symlink_to(shared)
    monkeypatch.setenv(variable, str(link / "mine"))
    keep_compiler_caches_private()
    assert os.environ[variable] == str(shared / "mine"), "no link stands between us and what was looked at"
    shared.chmod(0o777)
    with pytest.raises(UserError, match=f"{variable}: {shared} may be written by others"):
        keep_compiler_caches_private()
    monkeypatch.setenv(variable, str(Path(__file__) / "mine"))
    with pytest.raises(UserError, match=f"no directory for {variable}: {__file__} cannot be made: File exists"):
        keep_compiler_caches_private()


@pytest.mark.parametrize("home", [f"{__file__}/home", __file__, "/dev/null"])
def test_without_a_home_caches_are_temporary(tmp_path: Path, home: str) -> None:
    """And gone with the process, but not with a child of it."""
    code = (
        "import os; from hybridgraph.system.caches import keep_compiler_caches_private as keep; keep();"
        "os.fork() or os._exit(0); os.wait(); print(os.path.isdir(os.environ['TRITON_CACHE_DIR']));"
        "print(os.environ['TRITON_CACHE_DIR'])"
    )
    surroundings = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", *COMPILER_CACHES)}
    surroundings |= {"HOME": home, "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    there, place = run.stdout.splitlines()
    assert there == "True" and Path(place).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_any_place_for_caches_one_line_says_so(tmp_path: Path) -> None:
    code = (
        "import tempfile; tempfile._get_default_tempdir = lambda: (_ for _ in ()).throw(FileNotFoundError('none'));"
        "from hybridgraph.system.caches import keep_compiler_caches_private as keep; from hybridgraph.errors import *\n"
        "try: keep()\nexcept UserError as error: print(error)"
    )
    surroundings = os.environ | {"HOME": f"{__file__}/home", "XDG_CACHE_HOME": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert run.stdout == "no directory for TORCHINDUCTOR_CACHE_DIR: none\n", run.stderr


def test_torch_and_triton_use_these_caches(tmp_path: Path) -> None:
    code = (
        "from hybridgraph.system.caches import keep_compiler_caches_private as keep; keep();"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; from triton import knobs;"
        "print(cache_dir()); print(knobs.cache.dir)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    ours = tmp_path / "cache" / "hybridgraph"
    assert run.stdout.split() == [str(ours / "inductor"), str(ours / "triton")], run.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["case1_baseline.py"],
        ["case4_jit_cuda_generator.py"],
        ["case5_tensorrt_llm.py", "--engine", "hf-static"],
        ["case5_tensorrt_llm.py"],
        ["case4_jit_cuda_client.py", "--socket", "none"],
        ["-m", "hybridgraph", "pair", "case4", "--ops", "inductor"],
        ["-m", "hybridgraph", "check"],
    ],
    ids=" ".join,
)
def test_no_entry_point_starts_with_a_cache_of_others(tmp_path: Path, command: list[str]) -> None:
    planted = tmp_path / "torchinductor_user"
    planted.mkdir()
    planted.chmod(0o777)
    output = () if "generator" in command[0] else ("--output-dir", str(tmp_path / "output"))
    run = subprocess.run(
        [sys.executable, *command, *output],
        cwd=ROOT,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(planted)},
        capture_output=True,
        text=True,
    )
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2
    assert line.startswith(f"error: TORCHINDUCTOR_CACHE_DIR: {planted} may be written by others (mode 0777")
    assert not list((tmp_path / "output").glob("*_samples.jsonl"))


def test_the_engine_from_python_uses_these_caches(tmp_path: Path) -> None:
    code = "import os, hybridgraph; hybridgraph.HybridEngine; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == [str(tmp_path / "cache" / "hybridgraph" / "inductor")], run.stderr

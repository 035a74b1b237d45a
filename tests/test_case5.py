"""Case 5 as a user starts it, over a stand-in that takes exactly the arguments of each TensorRT-LLM version."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridgraph.cases import CASE5

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = Path(__file__).resolve().parent / "tensorrt_stand_in"
VERSIONS = ("1.0", "1.2", "1.4")
QUICK = ("--model", "tiny-llama", "--prompt-lengths", "12,31", "--ttft-iterations", "2", "--p99-iterations", "3")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of temporary files, however the engine's process ended."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    assert not list(temporary.glob("hybridgraph-*"))


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HYBRIDGRAPH_", "CUDA_"))}
    ours = {
        "PYTHONPATH": str(STAND_IN),
        "HYBRIDGRAPH_TRTLLM_PYTHON": sys.executable,
        "STAND_IN_VERSION": "1.2",
        "STAND_IN_WORKER": str(tmp_path / "worker"),
    }
    return kept | ours | variables


def start(tmp_path: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "case5_tensorrt_llm.py"), *QUICK, "--output-dir", str(tmp_path), *flags]
    return subprocess.Popen(
        command, env=environment(tmp_path, **variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(tmp_path: Path, *flags: str, **variables: str) -> tuple[int, str, str]:
    process = start(tmp_path, *flags, **variables)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def worker_is_gone(tmp_path: Path) -> bool:
    """Whether the process that the engine started, if it came to that, has ended; or only waits for init to reap it."""
    try:
        process = Path(f"/proc/{(tmp_path / 'worker').read_text()}/stat")
        return process.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def told_once(err: str, part: str) -> None:
    """One line of error, which says this, and no traceback."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and part in lines[0], err
    assert "Traceback" not in err


def reason(tmp_path: Path, name: str = CASE5.name) -> str:
    return json.loads((tmp_path / "environment.json").read_text())["not_run"][name]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_measured_in_its_own_process(tmp_path: Path, version: str) -> None:
    code, out, err = run(tmp_path, "--decode-tokens", "2", "--json", STAND_IN_VERSION=version)
    assert code == 0, err
    with (tmp_path / "case5_tensorrt_llm_ttft.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["prompt_length"]) for row in rows] == [12, 31]
    assert {row["graph_backend"] for row in rows} == {"tensorrt-llm"}
    assert {row["device"] for row in rows} == {"Stand-in GPU"}
    assert {row["dtype"] for row in rows} == {"float16"}
    assert all(float(row["engine_ttft_ms"]) == pytest.approx(7.5) for row in rows)
    assert json.loads(out.splitlines()[-1])["case"] == CASE5.name  # though the engine prints to standard output
    assert "[TensorRT-LLM]" not in out and "from below Python" in err
    assert worker_is_gone(tmp_path)
    check_record(tmp_path, version, num_requests=2 * (2 + 3 + 6))


def check_record(tmp_path: Path, version: str, num_requests: int) -> None:
    """What was asked of this version is in environment.json."""
    case = json.loads((tmp_path / "environment.json").read_text())["cases"][CASE5.name]
    engine = case["source"]["environment"]["engine"]
    used = engine["arguments"]
    assert used["KvCacheConfig"]["enable_block_reuse"] is False
    assert used["LLM"]["skip_tokenizer_init"] is True and used["LLM"]["max_batch_size"] == 1
    if version == "1.4":
        assert used["LLM"]["prefill_capture_num_tokens"] == [12, 31]
        assert used["DecodeCudaGraphConfig"]["batch_sizes"] == [1]
    else:
        assert used["TorchCompileConfig"]["capture_num_tokens"] == [12, 31]
        assert used["CudaGraphConfig"]["batch_sizes"] == [1]
    assert engine["unknown_to_this_version"] == {}
    assert case["source"]["forward"].startswith(f"TensorRT-LLM {version}")
    assert case["stats"]["requests_without_reuse"] == num_requests
    assert case["gpu_spent"].keys() == {"ttft", "p99", "decode"}
    for spent in case["gpu_spent"]["p99"].values():
        assert spent["energy_j"] / (spent["wall_ms"] / 1e3) == pytest.approx(500, rel=0.5)
        assert spent["power_capped_ms"] / spent["wall_ms"] == pytest.approx(0.5, rel=0.5)
        assert spent["thermally_capped_ms"] == "not told: Not Supported"


def test_the_single_process_variant_has_files_of_its_own(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "--engine", "tensorrt-llm-single")
    assert code == 0, err
    assert (tmp_path / "case5_tensorrt_llm_single_ttft.csv").exists()
    assert not (tmp_path / "worker").exists()
    assert not (tmp_path / "case5_tensorrt_llm_ttft.csv").exists()


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("reused", "reused 1 KV blocks"),
        ("short", "ended after 0 of 1 tokens"),
        ("crash", "failed to answer: RuntimeError: worker died"),
        ("oom", "CUDA out of memory"),
        ("killed", "SIGKILL"),
        ("no-mpi", "apt install libopenmpi-dev"),
    ],
)
def test_a_fault_is_one_line_and_an_exit_code(tmp_path: Path, fault: str, part: str) -> None:
    code, _, err = run(tmp_path, STAND_IN_FAULT=fault)
    assert code == 2
    told_once(err, part)
    assert part in reason(tmp_path)
    assert fault == "no-mpi" or worker_is_gone(tmp_path)
    assert not (tmp_path / "case5_tensorrt_llm_ttft.csv").exists()


@pytest.mark.parametrize(
    ("fault", "part"),
    [("hang-start", "did not start"), ("hang", "did not answer"), ("hang-shutdown", "did not shut down")],
)
def test_a_hang_ends_with_its_whole_group(tmp_path: Path, fault: str, part: str) -> None:
    limits = {"hang-start": "1.5,60,60", "hang": "60,1,60", "hang-shutdown": "60,60,1"}[fault]
    code, _, err = run(tmp_path, STAND_IN_FAULT=fault, HYBRIDGRAPH_ENGINE_TIMEOUTS_S=limits)
    assert code == 2
    told_once(err, part)
    assert worker_is_gone(tmp_path)
    assert (tmp_path / "case5_tensorrt_llm_ttft.csv").exists() == (fault == "hang-shutdown")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_ends_the_group_too(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, STAND_IN_FAULT="hang", HYBRIDGRAPH_ENGINE_TIMEOUTS_S="20,20,2")
    wait_for(lambda: (tmp_path / "environment.json").exists())  # written just before the first request
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert err.count("interrupted") == (1 if number == signal.SIGINT else 0), err
    assert worker_is_gone(tmp_path)


def test_a_killed_parent_takes_the_measuring_process_with_it(tmp_path: Path, tmp_path_factory: Any) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    process = start(tmp_path, "--pause-ms", "200", TMPDIR=str(scratch))
    wait_for(lambda: (tmp_path / "environment.json").exists())  # written just before the first request
    process.kill()
    wait_for(lambda: worker_is_gone(tmp_path))
    process.communicate()  # until nobody holds its standard error any more
    assert [list(directory.iterdir()) for directory in scratch.iterdir()] == [[]], "an engine left files"


def test_a_closed_standard_output_loses_no_measurement(tmp_path: Path) -> None:
    case5 = [sys.executable, str(ROOT / "case5_tensorrt_llm.py"), *QUICK, "--output-dir", str(tmp_path)]
    run = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *case5], env=environment(tmp_path), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / f"{CASE5.name}_samples.jsonl").read_text().splitlines()) == 1 + 2 * (2 + 3)


def test_a_model_without_an_end_id_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 100}))
    code, _, err = run(tmp_path, "--model", str(model))
    assert code == 2
    told_once(err, "has no eos_token_id")


@pytest.mark.parametrize(
    ("variables", "flags", "part"),
    [
        ({"STAND_IN_DRIVER": "absent"}, (), "no driver answers"),
        ({"CUDA_VISIBLE_DEVICES": ""}, (), "0 are visible"),
        ({}, ("--device", "cuda:3"), "1 are visible"),
        ({}, ("--device", "cpu"), "NVIDIA GPUs only"),
        ({"HYBRIDGRAPH_TRTLLM_PYTHON": "/nowhere/python"}, (), "is no Python interpreter"),
        ({"HYBRIDGRAPH_ENGINE_TIMEOUTS_S": "soon"}, (), "three numbers of seconds"),
        ({}, ("--engine", "vllm"), "vLLM is not installed"),
        ({"HYBRIDGRAPH_SGLANG_PYTHON": "/nowhere"}, ("--engine", "sglang-full"), "PYTHON=/nowhere is no Python"),
        ({}, ("--forward", "fused"), "variant of Case 4 only"),
        ({}, ("--model", "no-such-model"), "unknown model"),
    ],
)
def test_what_is_absent_is_said_in_one_line(
    tmp_path: Path, variables: dict[str, str], flags: tuple[str, ...], part: str
) -> None:
    code, _, err = run(tmp_path, *flags, **variables)
    assert code == 2
    told_once(err, part)


def test_the_stand_in_is_reachable_from_these_tests_alone() -> None:
    assert str(STAND_IN) not in sys.path
    product = [*(ROOT / "hybridgraph").rglob("*.py"), *ROOT.glob("*.py"), *ROOT.glob("*.sh"), ROOT / "pyproject.toml"]
    assert not [path for path in product if "stand_in" in path.read_text(encoding="utf-8").lower()]

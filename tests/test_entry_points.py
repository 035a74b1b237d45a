"""The entry points as a user meets them: real processes on the CPU, their mistakes, and Ctrl-C in the middle."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model
from checkouts import alive
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDGRAPH_")} | {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HYBRIDGRAPH_PYTHON": sys.executable,
}
TINY = ("--device", "cpu", "--prompt-lengths", "10,20", "--ttft-iterations", "2", "--p99-iterations", "3")
CASE_NAMES = ("case1_baseline", "case2_async_cuda", "case3_jit_only", "case4_jit_cuda", "case4_jit_cuda_fused")


def start(*arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=timeout_s)


def error_of(run: "subprocess.CompletedProcess[str]") -> str:
    """The one error line of a run that failed for a user's mistake."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.stderr.endswith(line + "\n"), "it is the last thing that is said"
    return line


def samples(output: Path, case: str = "case1_baseline") -> list[dict[str, object]]:
    lines = (output / f"{case}_samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def lengths_in(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["prompt_length"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("case1_baseline.py", "--bogus", "--bogus"),
        ("case3_jit_only.py", "--dtype int4", "'int4'"),
        ("case1_baseline.py", "--prompt-lengths 0", "start at 1"),
        ("case1_baseline.py", "--prompt-lengths -5", "'-5'"),
        ("case1_baseline.py", "--prompt-lengths 600 --max-seq-len 512", "--max-seq-len 512"),
        ("case1_baseline.py", "--p99-iterations 99999999", "99999999"),
        ("case2_async_cuda_client.py", "", "python case2_async_cuda_generator.py --socket"),
        ("case4_jit_cuda_client.py", "--socket NOWHERE", "python case4_jit_cuda_generator.py --socket"),
        ("case4_jit_cuda_generator.py", "--max-graphs 0", "--max-graphs 0"),
        ("cuda_only_rolling_server.py", "--precapture 9-3", "9-3"),
        ("graph_generator_rolling_cuda.py", "--device tpu", "tpu"),
        ("generate_final_tables.py", "--output-dir NOWHERE", "holds no result files"),
    ],
)
def test_a_mistake_is_one_line_before_torch_is_loaded(script: str, flags: str, said: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    arguments = [nowhere if flag == "NOWHERE" else flag for flag in flags.split()]
    where = [] if script == "generate_final_tables.py" else ["--output-dir", str(tmp_path / "output")]
    assert said in error_of(start(script, *arguments, *where))


@pytest.mark.parametrize("script", ["case1_baseline.py", "case4_jit_cuda_generator.py", "generate_final_tables.py"])
def test_an_interpreter_without_the_packages_is_told_in_one_line(script: str, tmp_path: Path) -> None:
    where = [] if script == "case4_jit_cuda_generator.py" else ["--output-dir", str(tmp_path)]
    run = subprocess.run([sys.executable, "-S", script, *where], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"{sys.executable} has no " in error_of(run) and ".venv/bin/python" in run.stderr
    shown = subprocess.run([sys.executable, "-S", script, "--help"], cwd=ROOT, capture_output=True, timeout=60)
    assert shown.returncode == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model no/such-model", "unknown model 'no/such-model'"),
        ("--model BROKEN", "config.json is no JSON"),
        ("--prompt-lengths 100000", "exceed"),
        ("--device cuda", "no usable NVIDIA GPU"),
    ],
)
def test_a_mistake_that_needs_the_model_or_the_device(flags: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{oops")
    arguments = [str(tmp_path) if flag == "BROKEN" else flag for flag in flags.split()]
    output = tmp_path / "output"
    assert said in error_of(start("case1_baseline.py", *arguments, "--output-dir", str(output)))
    reasons = json.loads((output / "environment.json").read_text())["not_run"]
    assert said in reasons["case1_baseline"], "the tables can say why the column is empty"


def test_what_a_case_has_no_use_for_is_said_and_not_reported(tmp_path: Path) -> None:
    run = start("case1_baseline.py", *TINY, "--max-graphs", "3", "--output-dir", str(tmp_path))
    assert run.returncode == 0 and run.stderr.startswith("Baseline has no use for --max-graphs 3\n")
    assert start("generate_final_tables.py", "--output-dir", str(tmp_path)).returncode == 0
    assert "--max-graphs" not in (tmp_path / "final_report.md").read_text()


@pytest.mark.parametrize(("stdout", "code"), [(">/dev/full", 2), ("| true; exit ${PIPESTATUS[0]}", 0), (">&-", 0)])
def test_results_that_nobody_can_read_are_on_disk(stdout: str, code: int, tmp_path: Path) -> None:
    for script, flags in (("case1_baseline.py", TINY), ("generate_final_tables.py", ())):
        command = " ".join([sys.executable, script, *flags, "--json", "--output-dir", str(tmp_path), stdout])
        run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=60)
        assert run.returncode == code, run.stderr
        assert "Traceback" not in run.stderr
        assert ("error: cannot write to standard output: No space" in run.stderr) == bool(code)
    assert lengths_in(tmp_path / "case1_baseline_p99.csv") == [10, 20]
    assert json.loads((tmp_path / "environment.json").read_text())["not_run"] == {}, "the case ran"
    assert (tmp_path / "final_report.md").exists()


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_measurement_does_not_end_for_its_progress(stderr: str, tmp_path: Path) -> None:
    command = " ".join([sys.executable, "case1_baseline.py", *TINY, "--output-dir", str(tmp_path), stderr])
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENVIRON, timeout=60).returncode == 0
    assert lengths_in(tmp_path / "case1_baseline_p99.csv") == [10, 20]


def test_a_pair_whose_socket_would_have_too_long_a_path_is_told_so(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100)
    directory.mkdir()
    command = [
        sys.executable,
        "-m",
        "hybridgraph",
        "pair",
        "case2",
        "--output-dir",
        str(tmp_path / "output"),
    ]
    run = subprocess.run(
        command, cwd=ROOT, env=ENVIRON | {"TMPDIR": str(directory)}, capture_output=True, text=True, timeout=60
    )
    reason = json.loads((tmp_path / "output" / "environment.json").read_text())["not_run"]["case2_async_cuda"]
    assert error_of(run) == f"error: {reason}"
    assert "a socket's path has at most 107" in reason and "TMPDIR" in reason


def test_a_client_records_what_its_generator_was_opened_with(tmp_path: Path) -> None:
    socket = tmp_path / "private" / "socket"
    command = [sys.executable, "case4_jit_cuda_generator.py", "--device", "cpu", "--precapture", "10,20", "--seed", "3"]
    with subprocess.Popen(
        [*command, "--socket", str(socket)], cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE
    ) as process:
        wait_for(socket.exists, "it listens", process)
        client = ("case4_jit_cuda_client.py", "--socket", str(socket), "--output-dir", str(tmp_path / "output"))
        refused = start(*client, "--dtype", "bfloat16", *TINY)
        assert "--dtype bfloat16: the generator at" in error_of(refused) and "has float32" in refused.stderr
        assert "--seed 4: the generator at" in error_of(start(*client, "--seed", "4", *TINY))
        assert start(*client, *TINY).returncode == 0
        again = start(*client[:-1], str(tmp_path / "again"), *TINY)
        assert again.returncode == 0, again.stderr
        process.terminate()
    case = json.loads((tmp_path / "output" / "environment.json").read_text())["cases"]["case4_jit_cuda"]
    recorded = {name: case["configuration"][name] for name in ("model", "dtype", "precapture", "ops", "seed")}
    assert recorded == {
        "model": "tiny-llama", "dtype": "float32", "precapture": "10,20", "ops": "torchscript", "seed": 3
    }  # fmt: skip
    with (tmp_path / "again" / "case4_jit_cuda_ttft.csv").open() as file:
        assert not any(row["cold_ms"] for row in csv.DictReader(file)), "the first client had the cold request"


def test_a_client_may_spell_out_what_its_case_captures(tmp_path: Path) -> None:
    socket = tmp_path / "private" / "socket"
    command = [sys.executable, "case4_jit_cuda_generator.py", "--device", "cpu", "--max-seq-len", "64"]
    with subprocess.Popen(
        [*command, "--socket", str(socket)], cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE
    ) as process:
        wait_for(socket.exists, "it listens", process)
        client = ("case4_jit_cuda_client.py", "--socket", str(socket), "--output-dir", str(tmp_path / "output"), *TINY)
        assert "has 10-500:10" in error_of(start(*client, "--precapture", "10,20"))
        run = start(*client, "--precapture", "10-500:10")
        assert run.returncode == 0, run.stderr
        process.terminate()


def test_a_generator_that_cannot_start_says_why_once(tmp_path: Path) -> None:
    run = start("-m", "hybridgraph", "pair", "case4", "--device", "cuda", "--output-dir", str(tmp_path))
    line = error_of(run)
    assert "no usable NVIDIA GPU" in line
    reason = json.loads((tmp_path / "environment.json").read_text())["not_run"]["case4_jit_cuda"]
    assert f"error: {reason}" == line


def test_of_a_pair_only_the_client_draws_on_the_terminal(tmp_path: Path) -> None:
    terminal, their_end = os.openpty()
    command = [sys.executable, "-m", "hybridgraph", "pair", "case4", *TINY, "--precapture", "10,20"]
    with subprocess.Popen(
        [*command, "--output-dir", str(tmp_path)], cwd=ROOT, env=ENVIRON, stdout=subprocess.DEVNULL, stderr=their_end
    ):
        os.close(their_end)
        drawn = b""
        with suppress(OSError):  # the last one has closed it
            while piece := os.read(terminal, 1 << 16):
                drawn += piece
    os.close(terminal)
    assert b"3/3" in drawn[drawn.index(b"capturing graphs") :]
    hide_cursor = b"\x1b[?25l"
    assert drawn.count(hide_cursor) == 2, "one display until the generator is ready, one of the measurement"


def test_an_output_directory_under_a_file_is_told_before_the_model_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "output")
    run = start("case1_baseline.py", *TINY, "--model", "no/such-model", "--output-dir", output)
    assert output in error_of(run)


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A model with weights and a tokenizer, in which the word "w17" is id 17."""
    directory = tmp_path / "text-model"
    loaded = tiny_model("llama-gqa", directory)
    loaded.module.save_pretrained(directory)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(loaded.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    return directory


def test_prompts_from_a_text(text_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{index}" for index in range(3, 33)))
    real = ("--model", str(text_model), "--load-format", "auto", "--output-dir", str(tmp_path / "output"))

    run = start("case1_baseline.py", *TINY, *real, "--prompt-file", str(text))
    assert run.returncode == 0, run.stderr
    assert len(samples(tmp_path / "output")) == 2 * (2 + 3)

    absent = start("case1_baseline.py", *TINY, *real, "--model", "no/such-model", "--prompt-file", str(text) + "x")
    assert error_of(absent) == f"error: --prompt-file {text}x: No such file or directory"

    short = start("case1_baseline.py", *TINY, *real, "--prompt-lengths", "10,31", "--prompt-file", str(text))
    assert f"prompt length 31 is more than the 30 tokens of {text}" in error_of(short)
    assert len(samples(tmp_path / "output")) == 2 * (2 + 3), "it is told before anything is measured or set aside"


def test_logits_that_are_no_numbers_are_told_with_the_times(tmp_path: Path) -> None:
    directory, output = tmp_path / "model", tmp_path / "output"
    module = tiny_model("llama-gqa", directory).module
    with torch.no_grad():
        module.lm_head.weight[7] = torch.nan
    module.save_pretrained(directory)
    flags = (*TINY, "--model", str(directory), "--load-format", "auto", "--output-dir", str(output))
    pair = ("-m", "hybridgraph", "pair", "case4", "--precapture", "10,20")
    runs = {"case3_jit_only": ("case3_jit_only.py",), "case4_jit_cuda": (*pair, "--share-buffers")}
    told = "10 answers ended in logits that are not finite"
    for case, command in runs.items():
        run = start(*command, *flags)
        assert run.returncode == 0, run.stderr
        assert told in run.stdout
        assert [sample["overflowed"] for sample in samples(output, case)] == [True] * 10
    tables = start("generate_final_tables.py", "--output-dir", str(output))
    assert f"JIT only: {told}" in tables.stdout and f"JIT+CUDA: {told}" in tables.stdout, tables.stderr
    baseline = start("case1_baseline.py", *flags)
    assert error_of(baseline) == (
        "error: generate() cannot sample: the model's logits are not finite in float32; try another --dtype"
    )


def test_ctrl_c_keeps_the_rows_and_resume_measures_only_the_rest(tmp_path: Path) -> None:
    output = tmp_path / "output"
    flags = ("--device", "cpu", "--prompt-lengths", "10,20,30", "--ttft-iterations", "2", "--p99-iterations", "20")
    command = [sys.executable, "case1_baseline.py", *flags, "--output-dir", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRON, stderr=subprocess.PIPE, text=True)
    wait_for_row(output / "case1_baseline_p99.csv", process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert "--resume" in said.splitlines()[-1] and "Traceback" not in said
    kept = samples(output)
    assert lengths_in(output / "case1_baseline_ttft.csv") == [10, 20, 30]
    assert len(kept) < 3 * 22, "it was interrupted before its end"

    resumed = start("case1_baseline.py", *flags, "--output-dir", str(output), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert samples(output)[: len(kept)] == kept, "what was measured stays as it was"
    assert len(samples(output)) == 3 * 22
    assert lengths_in(output / "case1_baseline_p99.csv") == [10, 20, 30]
    first = (output / "case1_baseline_samples.jsonl").read_text()

    other = start("case1_baseline.py", *flags, "--seed", "9", "--output-dir", str(output), "--resume")
    assert "had seed 0, this one has 9" in error_of(other)
    assert json.loads((output / "environment.json").read_text())["not_run"] == {}, "the run is as finished as before"

    second = start("case1_baseline.py", *TINY, "--output-dir", str(output))
    assert second.returncode == 0, second.stderr
    (aside,) = (output / "previous").glob("*/case1_baseline_samples.jsonl")
    assert aside.read_text() == first
    assert len({sample["run_id"] for sample in samples(output)}) == 1
    assert lengths_in(output / "case1_baseline_p99.csv") == [10, 20]


@pytest.mark.parametrize("script", ["case1_baseline.py", "case3_jit_only.py", "case4_jit_cuda_generator.py"])
def test_ctrl_c_while_loading_is_told_in_one_line(script: str, tmp_path: Path) -> None:
    seed = random.randrange(10_000)
    after_s = random.Random(seed).uniform(0, 8)  # importing, loading, or measuring already
    print(f"seed {seed}: after {after_s:.1f} s")
    flags = ("--device", "cpu", "--seed", "7", "--output-dir", str(tmp_path / "output"), "--p99-iterations", "100000")
    told = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, script, *flags], cwd=ROOT, env=ENVIRON, stderr=told, stdout=told, text=True
    )

    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text(), "it imports torch", process)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said and "Exception ignored" not in said
    assert said.count("interrupted") == (0 if "generator" in script else 1)


def test_ctrl_c_of_a_pair_leaves_no_generator(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--prompt-lengths", "10,20", "--p99-iterations", "100000", "--precapture", "10,20")
    command = [str(ROOT / "run_case4_benchmark.sh"), *flags, "--output-dir", str(tmp_path)]
    env = ENVIRON | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_row(tmp_path / "case4_jit_cuda_ttft.csv", process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not alive(f"TMPDIR={tmp_path}")


def generator_of(pair: int) -> int:
    """The process that a pair has started, behind its guard."""
    for _ in range(2):
        (pair,) = map(int, Path(f"/proc/{pair}/task/{pair}/children").read_text().split())
    return pair


def test_a_generator_that_is_killed_is_told_with_why_it_was(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--prompt-lengths", "10", "--p99-iterations", "100000", "--precapture", "10,20")
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridgraph", "pair", "case4", *flags, "--output-dir", str(tmp_path / "output")],
        cwd=ROOT, env=ENVIRON | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_row(tmp_path / "output" / "case4_jit_cuda_ttft.csv", process)
    os.kill(generator_of(process.pid), signal.SIGKILL)
    said = process.communicate(timeout=30)[1]
    reason = "the generator case4_jit_cuda_generator.py was ended by SIGKILL: most often the machine's memory is full"
    assert process.returncode == 2 and said.splitlines()[-1] == f"error: {reason}"
    recorded = json.loads((tmp_path / "output" / "environment.json").read_text())
    assert recorded["not_run"] == {"case4_jit_cuda": reason}
    assert not any(tmp_path.glob("hybridgraph-*")), "nothing is left of its socket"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["loading", "measuring"])
def test_a_pair_that_is_ended_takes_its_generator_with_it(number: signal.Signals, stage: str, tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--prompt-lengths", "10", "--p99-iterations", "100000", "--precapture", "10,20")
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridgraph", "pair", "case4", *flags, "--output-dir", str(tmp_path / "output")],
        cwd=ROOT, env=ENVIRON | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if stage == "measuring":
        wait_for_row(tmp_path / "output" / "case4_jit_cuda_ttft.csv", process)
    else:
        wait_for(lambda: any(tmp_path.glob("hybridgraph-*/socket")), "its generator listens", process)
    process.send_signal(number)  # to it alone
    said = process.communicate(timeout=30)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said
    wait_for(lambda: not alive(f"TMPDIR={tmp_path}"), "nothing of it lives on")
    assert not any(tmp_path.glob("hybridgraph-*"))


def test_a_stop_signal_ends_a_pair_whose_generator_is_stopped(tmp_path: Path) -> None:
    flags = ("--device", "cpu", "--prompt-lengths", "10", "--p99-iterations", "100000", "--precapture", "10,20")
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridgraph", "pair", "case4", *flags, "--output-dir", str(tmp_path / "output")],
        cwd=ROOT, env=ENVIRON | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_row(tmp_path / "output" / "case4_jit_cuda_ttft.csv", process)
    os.kill(generator_of(process.pid), signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "killed" not in said, said
    assert not alive(f"TMPDIR={tmp_path}") and not any(tmp_path.glob("hybridgraph-*"))


def test_the_complete_run_ends_with_tables(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = [str(ROOT / "run_complete_benchmark.sh"), *TINY, "--decode-tokens", "4", "--precapture", "10,20"]
    run = subprocess.run(
        [*command, "--output-dir", str(output), "--json"],
        cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for name in CASE_NAMES:
        assert lengths_in(output / f"{name}_ttft.csv") == [10, 20]
        assert lengths_in(output / f"{name}_p99.csv") == [10, 20]
        assert lengths_in(output / f"{name}_decode.csv") == [10, 20]
    with (output / "final_ttft_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt_length"] for row in rows] == ["10", "20"]
    assert {row["winner"] for row in rows} == {""}, "graphs are emulated: nobody wins"
    assert {row["tensorrt_ms"] for row in rows} == {""}
    told = [line for line in run.stderr.splitlines() if line.startswith("== ")]
    assert "case 1 of 6" in told[0] and "left" not in told[0] and "left" in told[1]
    assert "not asked for: add --with-tensorrt-llm" in (output / "final_report.md").read_text()
    assert "tables" in json.loads(run.stdout.splitlines()[-1])


def wait_for_row(path: Path, process: "subprocess.Popen[str]") -> None:
    wait_for(path.exists, f"{path} is there", process)


def wait_for(happened: Callable[[], bool], what: str, process: "subprocess.Popen[Any] | None" = None) -> None:
    deadline = time.monotonic() + 60.0
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)

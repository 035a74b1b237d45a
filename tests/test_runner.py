"""The measuring loop and the files it leaves, over a source that only counts."""

import csv
import gzip
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest

from hybridgraph.bench import run as runner
from hybridgraph.bench.environment import ENVIRONMENT, read_environment, record_not_run
from hybridgraph.bench.prompts import Prompts, RandomPrompts, TextPrompts
from hybridgraph.bench.protocol import protocol_name
from hybridgraph.bench.samples import DECODE_COLUMNS, P99_COLUMNS, TTFT_COLUMNS
from hybridgraph.bench.stats import percentile
from hybridgraph.bench.store import ResultFiles, ResultWriter, set_all_aside
from hybridgraph.cases import CASE1, CASE4, Case
from hybridgraph.cli.study import check
from hybridgraph.config import Config
from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.models.shapes import builtin_config
from hybridgraph.roofline import ModelShape, Rates


class CountingSource:
    """Answers at once, and remembers what it was asked."""

    info = SourceInfo(
        model="none", dtype="float32", load_format="dummy", device="nothing", vocab_size=100, max_seq_len=512,
        special_ids=(1, 2), graph_backend="emulated",
    )  # fmt: skip

    def __init__(self, fail_after: int | None = None) -> None:
        self.requests: list[Request] = []
        self._fail_after = fail_after

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        self.requests.append(request)
        if len(self.requests) == self._fail_after:
            raise KeyboardInterrupt
        for token in range(request.max_new_tokens):
            emit(token)
        return Report(graph_path="exact")

    def stats(self) -> dict[str, Any]:
        return {"requests": len(self.requests)}

    def close(self) -> None:
        pass


def config(directory: Path, **settings: Any) -> Config:
    defaults = {"prompt_lengths": (7, 3), "ttft_iterations": 2, "p99_iterations": 4, "output_dir": str(directory)}
    return Config(**{**defaults, **settings})


def measure(source: CountingSource, config: Config, case: Case, prompts: Prompts | None = None) -> ResultWriter:
    """As the entry points do."""
    with ResultFiles(config.output_path, case.name).held():
        return runner.measure(source, config, case, prompts)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_protocol_order_and_prompts(tmp_path: Path) -> None:
    source = CountingSource()
    measure(source, config(tmp_path, decode_tokens=3), CASE1)
    lengths = [len(request.prompt_ids) for request in source.requests]
    assert lengths == [3] * 2 + [7] * 2 + [3] * 4 + [7] * 4 + [3] * 6 + [7] * 6
    assert [request.max_new_tokens for request in source.requests] == [1] * 12 + [4] * 12
    prompts = [tuple(request.prompt_ids) for request in source.requests]
    assert len(set(prompts)) == len(prompts), "no two requests share their ids"
    text, source = TextPrompts(range(100), seed=0, source="text"), CountingSource()
    measure(source, config(tmp_path, prompt_lengths=(90,)), CASE1, text)
    assert len({tuple(request.prompt_ids) for request in source.requests}) == 6, "nor do windows, while there are any"
    assert not {1, 2} & {token for prompt in prompts for token in prompt}, "special tokens are excluded"


def test_every_case_sees_the_same_requests(tmp_path: Path) -> None:
    first, second = CountingSource(), CountingSource()
    measure(first, config(tmp_path / "a"), CASE1)
    measure(second, config(tmp_path / "b"), CASE4)
    assert first.requests == second.requests


def test_files_and_columns(tmp_path: Path) -> None:
    results = measure(CountingSource(), config(tmp_path, decode_tokens=2), CASE1)
    for suffix, columns in (("ttft", TTFT_COLUMNS), ("p99", P99_COLUMNS), ("decode", DECODE_COLUMNS)):
        table = rows(tmp_path / f"case1_baseline_{suffix}.csv")
        assert tuple(table[0]) == columns
        assert [row["prompt_length"] for row in table] == ["3", "7"]
        assert {row["run_id"] for row in table} == {results.identity.run_id}
        assert {row["graph_backend"] for row in table} == {"emulated"}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["cases"]["case1_baseline"]["configuration"]["p99_iterations"] == 4
    assert environment["cases"]["case1_baseline"]["stats"] == {"requests": 2 * 2 + 4 * 2 + 6 * 2}


def test_cold_first_seen_and_warm_are_told_apart(tmp_path: Path) -> None:
    results = measure(CountingSource(), config(tmp_path), CASE1)
    warmth = [(s.prompt_length, s.warmth) for s in results.samples if s.phase == "ttft"]
    assert warmth == [(3, "cold"), (3, "warm"), (7, "first_seen"), (7, "warm")]
    short, long = rows(tmp_path / "case1_baseline_ttft.csv")
    assert short["cold_ms"] and not short["first_seen_ms"]
    assert long["first_seen_ms"] and not long["cold_ms"]
    assert short["warm_samples"] == "5"
    assert (short["samples"], short["exact"]) == ("2", "6")
    assert short["floor_ms"] == short["device_ms"] == "", "unknown is empty"


def test_the_first_answer_of_several_tokens_is_no_part_of_itl(tmp_path: Path) -> None:
    class Warming(CountingSource):
        def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
            first = all(other.max_new_tokens == 1 for other in self.requests)
            for token in range(request.max_new_tokens):
                time.sleep(0.02 if first and request.max_new_tokens > 1 else 0)
                emit(token)
            self.requests.append(request)
            return Report(graph_path="exact")

    results = measure(Warming(), config(tmp_path, decode_tokens=3, prompt_lengths=(3,)), CASE1)
    decoded = [sample.warmth for sample in results.samples if sample.phase == "decode"]
    assert decoded == ["first_seen", *["warm"] * 5]
    (row,) = rows(tmp_path / "case1_baseline_decode.csv")
    assert float(row["first_itl_ms"]) >= 20 > 5 > float(row["itl_mean_ms"])
    assert row["samples"] == "15"


def test_of_a_source_that_has_answered_before_no_request_is_cold(tmp_path: Path) -> None:
    source = CountingSource()
    source.stats = lambda: {"counters": {"exact": 5, "padded": 2, "evicted": 9}}  # type: ignore[method-assign]
    results = measure(source, config(tmp_path), CASE1)
    assert [s.warmth for s in results.samples if s.phase == "ttft"] == ["first_seen", "warm"] * 2
    assert json.loads((tmp_path / "environment.json").read_text())["cases"]["case1_baseline"]["served_before"] == 7


def test_a_resume_keeps_the_floor(tmp_path: Path) -> None:
    def source(bytes_per_s: float, **fails: int) -> CountingSource:
        made = CountingSource(**fails)
        shape = ModelShape.from_config(builtin_config("tiny-llama") or {}, "float32")
        made.info = replace(made.info, shape=shape, rates=Rates(bytes_per_s=bytes_per_s, flops_per_s=1e12))
        return made

    with pytest.raises(KeyboardInterrupt):
        measure(source(1e9, fail_after=4), config(tmp_path), CASE1)
    before = rows(tmp_path / "case1_baseline_ttft.csv")
    for _attempt in range(2):  # one that goes on, and one that finds nothing to do
        measure(source(2e9), config(tmp_path, resume=True), CASE1)
        after = rows(tmp_path / "case1_baseline_ttft.csv")
        assert [row["floor_ms"] for row in after[: len(before)]] == [row["floor_ms"] for row in before] != [""]
    case = json.loads((tmp_path / "environment.json").read_text())["cases"]["case1_baseline"]
    assert case["source"]["rates"]["bytes_per_s"] == 1e9


def test_an_interrupted_run_keeps_its_rows_and_resumes(tmp_path: Path) -> None:
    interrupted = CountingSource(fail_after=7)  # inside the P99 row of length 3
    with pytest.raises(KeyboardInterrupt):
        measure(interrupted, config(tmp_path), CASE1)
    before = rows(tmp_path / "case1_baseline_ttft.csv")
    assert len(before) == 2
    resumed = CountingSource()
    results = measure(resumed, config(tmp_path, resume=True), CASE1)
    warmed, measured = resumed.requests[:2], resumed.requests[2:]
    assert [len(request.prompt_ids) for request in warmed] == [3, 7], "no row that is left finds the process cold"
    assert [len(request.prompt_ids) for request in measured] == [3] * 4 + [7] * 4, "TTFT rows are not repeated"
    assert {sample.warmth for sample in results.samples if sample.phase == "p99"} == {"warm"}
    after = rows(tmp_path / "case1_baseline_ttft.csv")
    assert [row["mean_ms"] for row in after] == [row["mean_ms"] for row in before]
    assert {sample.run_id for sample in results.samples} == {results.identity.run_id} == {before[0]["run_id"]}
    again = CountingSource()
    (tmp_path / "case1_baseline_p99.csv").unlink()
    measure(again, config(tmp_path, resume=True), CASE1)
    assert len(rows(tmp_path / "case1_baseline_p99.csv")) == 2, "what follows from the samples is made again"
    assert again.requests == []
    case = json.loads((tmp_path / "environment.json").read_text())["cases"]["case1_baseline"]
    assert case["stats"] == {"requests": 10}, "whoever had nothing to do leaves what is known alone"
    record_not_run(tmp_path, CASE1.name, "refused")
    measure(again, config(tmp_path, resume=True), CASE1)
    assert json.loads((tmp_path / "environment.json").read_text())["not_run"] == {}


def test_a_line_cut_short_by_a_crash_does_not_stop_a_resume(tmp_path: Path) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    path = tmp_path / "case1_baseline_samples.jsonl"
    path.write_text(path.read_text()[:-40])
    source = CountingSource()
    measure(source, config(tmp_path, resume=True), CASE1)
    measured = [len(request.prompt_ids) for request in source.requests[2:]]
    assert measured == [7] * 4, "its whole row is measured again"
    assert len(rows(tmp_path / "case1_baseline_p99.csv")) == 2


def test_read_samples_of_a_gzipped_file_are_those_of_the_plain_one(tmp_path: Path) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    files = ResultFiles(tmp_path, CASE1.name)
    path = tmp_path / "case1_baseline_samples.jsonl"
    before, content = files.read_samples(), path.read_bytes()
    path.unlink()
    assert files.read_samples() is None
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    assert files.read_samples() == before is not None
    again = CountingSource()
    measure(again, config(tmp_path, resume=True), CASE1)
    assert again.requests == [] and path.read_bytes() == content
    measure(CountingSource(), config(tmp_path), CASE1)
    (kept,) = (tmp_path / "previous").iterdir()
    assert {path.name, f"{path.name}.gz"} <= {file.name for file in kept.iterdir()}
    assert not path.with_name(f"{path.name}.gz").exists()


@pytest.mark.parametrize(
    "changed",
    [{"ttft_ms": -1.0}, {"ttft_ms": "1"}, {"device_ms": math.inf}, {"ttft_ms": math.nan}, {"warmth": "hot"},
     {"gc_collections": None}, {"itl_ms": [None]}, {"phase": "p98"}, {"graph_path": "best"},
     {"overflowed": "no"}, {"run_id": "another"}, {"prompt_length": 10.5}, {"unknown": 1}],
    ids=str,
)  # fmt: skip
def test_resume_refuses_samples_that_this_program_did_not_write(tmp_path: Path, changed: dict[str, object]) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    path = tmp_path / "case1_baseline_samples.jsonl"
    *lines, last = path.read_text().splitlines()
    before = "\n".join([*lines, json.dumps(json.loads(last) | changed)]) + "\n"
    path.write_text(before)
    with pytest.raises(UserError, match="holds more or less than the samples of one run"):
        measure(CountingSource(), config(tmp_path, resume=True), CASE1)
    assert path.read_text() == before


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    other = CountingSource()
    other.info = replace(other.info, dtype="float16")
    with pytest.raises(UserError, match="dtype float32"):
        measure(other, config(tmp_path, resume=True), CASE1)
    for changed in ({"decode_tokens": 3}, {"max_graphs": 7}, {"greedy": True}, {"prompt_lengths": (3,)}):
        with pytest.raises(UserError, match=r"--resume: the run in .* had"):
            measure(CountingSource(), config(tmp_path, resume=True, **changed), CASE1)


def test_resume_refuses_rows_of_another_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridgraph.bench.run.project_commit", lambda: "aaaa")
    measure(CountingSource(), config(tmp_path), CASE1)
    monkeypatch.setattr("hybridgraph.bench.run.project_commit", lambda: "bbbb")
    with pytest.raises(UserError, match="had commit aaaa, this one has bbbb"):
        measure(CountingSource(), config(tmp_path, resume=True), CASE1)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"torch_threads": 2, "packages": {"torch": "1"}}, "had torch_threads 1, this one has 2"),
        ({"torch_threads": 1, "packages": {"torch": "2"}}, r"had packages\.torch 1, this one has 2"),
    ],
    ids=["threads", "versions"],
)
def test_resume_refuses_rows_of_another_machine(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    def source(environment: dict[str, Any]) -> CountingSource:
        source = CountingSource()
        source.info = replace(source.info, environment=environment)
        return source

    before = {"torch_threads": 1, "packages": {"torch": "1"}, "gpu": {"driver": "580", "temperature_c": 30}}
    measure(source(before), config(tmp_path), CASE1)
    with pytest.raises(UserError, match=message):
        measure(source(now), config(tmp_path, resume=True), CASE1)
    measure(source(before | {"gpu": {"driver": "580", "temperature_c": 60}}), config(tmp_path, resume=True), CASE1)


def test_a_resumed_run_has_a_first_answer_of_several_tokens(tmp_path: Path) -> None:
    """Its requests are as warm as without the interruption, which came in the P99 phase."""
    with suppress(KeyboardInterrupt):
        measure(CountingSource(2 * 2 + 4 + 1), config(tmp_path, decode_tokens=3), CASE1)
    measure(CountingSource(), config(tmp_path, decode_tokens=3, resume=True), CASE1)
    measure(CountingSource(), config(tmp_path / "whole", decode_tokens=3), CASE1)
    resumed = rows(tmp_path / "case1_baseline_decode.csv")
    whole = rows(tmp_path / "whole" / "case1_baseline_decode.csv")
    assert [row["samples"] for row in resumed] == [row["samples"] for row in whole]
    assert all(row["first_itl_ms"] for row in resumed)


def test_a_new_run_of_all_cases_sets_everything_aside(tmp_path: Path) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    measure(CountingSource(), config(tmp_path), CASE4)
    (tmp_path / "final_report.md").write_text("of then")
    (tmp_path / "mine.txt").write_text("not ours")
    names = {path.name for path in tmp_path.iterdir() if path.name[0] != "."} - {"mine.txt"}
    set_all_aside(tmp_path)
    (kept,) = (tmp_path / "previous").iterdir()
    assert {path.name for path in kept.iterdir()} == names
    assert (tmp_path / "mine.txt").exists()
    assert set_all_aside(tmp_path) is None
    assert len(list((tmp_path / "previous").iterdir())) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--model no/such", "unknown model 'no/such'"),
        ("--model tiny-llama --load-format auto", "is a shape without weights"),
        ("--model no/such --load-format auto", "model 'no/such' cannot be loaded"),
        ("--model . --load-format auto", "holds no config.json: it is no model directory"),
        ("--model no/such.gguf --load-format auto --prompt-file /no/text", "--prompt-file /no/text: No such file"),
        ("--device cuda:999", "--device cuda:999: "),
        ("--device cuda:999 --model tiny-llama", "--device cuda:999: "),
        ("--model tiny-llama --prompt-lengths 5000", "5001 positions exceed the 4096 of tiny-llama"),
    ],
)
def test_what_no_case_could_run_with_is_told_once_and_sets_nothing_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert check([*flags.split(), "--output-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff\n",
        b"\n",
        b"[1, 2]\n",
        b"[" * 100_000 + b"\n",
        b'{"run_id": 1}\n',
        "seed of an identity",
        "text of a sample",
        "another run",
        "another phase",
    ],
    ids=str,
)
def test_resume_refuses_what_is_no_run(tmp_path: Path, wrong: bytes | str) -> None:
    measure(CountingSource(), config(tmp_path), CASE1)
    path = tmp_path / "case1_baseline_samples.jsonl"
    if isinstance(wrong, bytes):
        path.write_bytes(wrong)
    else:
        lines = path.read_text().splitlines(keepends=True)
        key, value = {
            "text of a sample": ("ttft_ms", "abc"),
            "another run": ("run_id", "x"),
            "another phase": ("phase", "x"),
            "seed of an identity": ("seed", "0"),
        }[wrong]
        line = 0 if "identity" in wrong else -1
        lines[line] = json.dumps(json.loads(lines[line]) | {key: value}) + "\n"
        path.write_text("".join(lines))
    before = path.read_bytes()
    with pytest.raises(UserError, match="run without --resume"):
        measure(CountingSource(), config(tmp_path, resume=True), CASE1)
    assert path.read_bytes() == before


def test_a_second_run_keeps_the_first_aside(tmp_path: Path) -> None:
    first = measure(CountingSource(), config(tmp_path), CASE1)
    old = (tmp_path / "case1_baseline_ttft.csv").read_text()
    second = measure(CountingSource(), config(tmp_path), CASE1)
    assert first.identity.run_id != second.identity.run_id
    (kept,) = (tmp_path / "previous").iterdir()
    assert (kept / "case1_baseline_ttft.csv").read_text() == old
    assert read_environment(kept / ENVIRONMENT)["cases"][CASE1.name]["identity"]["run_id"] == first.identity.run_id
    assert {row["run_id"] for row in rows(tmp_path / "case1_baseline_ttft.csv")} == {second.identity.run_id}


def test_an_unwritable_directory_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = CountingSource()
    with pytest.raises(UserError, match="cannot write"):
        measure(source, config(tmp_path / "file"), CASE1)
    assert source.requests == []


def test_what_the_gpu_spent_survives_an_interruption(tmp_path: Path) -> None:
    """On a GPU whose driver tells nothing, which is stored as well; a new run begins anew."""

    def run(fail_after: int | None, **settings: Any) -> dict[str, Any]:
        source = CountingSource(fail_after)
        source.info = replace(source.info, environment={"gpu": {"uuid": "GPU-none"}})
        with suppress(KeyboardInterrupt):
            measure(source, config(tmp_path, **settings), CASE1)
        case = json.loads((tmp_path / "environment.json").read_text())["cases"][CASE1.name]
        return case["gpu_spent"]  # type: ignore[no-any-return]

    interrupted = run(4)
    assert list(interrupted["ttft"]) == ["3"]
    assert interrupted["ttft"]["3"]["energy_j"].startswith("not told")
    resumed = run(None, resume=True)
    assert {phase: list(lengths) for phase, lengths in resumed.items()} == {"ttft": ["3", "7"], "p99": ["3", "7"]}
    assert resumed["ttft"]["3"] == interrupted["ttft"]["3"]
    assert list(run(2)) == []


def test_a_request_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exceed the 512 positions"):
        measure(CountingSource(), config(tmp_path, prompt_lengths=(512,)), CASE1)


def test_not_run_is_forgotten_once_the_case_ran(tmp_path: Path) -> None:
    record_not_run(tmp_path, CASE1.name, "no reason")
    measure(CountingSource(), config(tmp_path), CASE1)
    assert json.loads((tmp_path / "environment.json").read_text())["not_run"] == {}


def test_what_the_loop_itself_adds(tmp_path: Path) -> None:
    """TTFT of a source that answers at once is the loop's own cost."""
    results = measure(CountingSource(), config(tmp_path, p99_iterations=500), CASE1)
    overhead_us = median(sample.ttft_ms for sample in results.samples if sample.phase == "p99") * 1e3
    print(f"the loop adds {overhead_us:.2f} µs to a request")
    assert overhead_us < 20


def test_requests_apart_rest_outside_of_their_time(tmp_path: Path) -> None:
    began = perf_counter()
    results = measure(CountingSource(), config(tmp_path, pause_ms=4), CASE1)
    assert perf_counter() - began >= len(results.samples) * 4e-3
    assert median(sample.ttft_ms for sample in results.samples) < 4
    assert results.identity.protocol == "2+4 requests, warm-up 0, 4 ms apart"


def test_the_protocol_is_named_by_what_differs_from_the_papers() -> None:
    assert protocol_name(Config()) == "paper"
    assert protocol_name(Config(pause_ms=20)) == "paper, 20 ms apart"
    assert protocol_name(Config(prompt_lengths=(7,), pause_ms=0.5)) == "paper, other lengths, 0.5 ms apart"


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(i) for i in range(1, 101)]
    assert percentile(values, 99) == 99.0
    assert percentile(values, 50) == 50.0
    assert percentile([3.0], 99) == 3.0


def test_random_prompts_are_a_function_of_seed_length_and_index() -> None:
    one, other = (RandomPrompts(seed=s, vocab_size=50, special_ids=(0,)) for s in (1, 2))
    assert one.ids(20, 3) == RandomPrompts(seed=1, vocab_size=50, special_ids=(0,)).ids(20, 3)
    assert one.ids(20, 3) != one.ids(20, 4) != other.ids(20, 4)
    assert len(one.ids(400, 0)) == 400


def test_text_prompts_are_windows_of_exact_length() -> None:
    prompts = TextPrompts(range(100), seed=0, source="text")
    assert prompts.ids(100, 5) == list(range(100))
    assert len({tuple(prompts.ids(90, i)) for i in range(11)}) == 11
    with pytest.raises(UserError, match="more than the 100 tokens"):
        prompts.ids(101, 0)


def test_every_request_rests(tmp_path: Path) -> None:
    class Clocked(CountingSource):
        answered_s = perf_counter()

        def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
            rests_s.append(perf_counter() - self.answered_s)
            report = super().stream(request, emit)
            self.answered_s = perf_counter()
            return report

    rests_s: list[float] = []
    measure(Clocked(), config(tmp_path, pause_ms=20), CASE1)
    assert len(rests_s) == 12 and min(rests_s) >= 0.020


def test_greedy_requests_are_greedy(tmp_path: Path) -> None:
    source = CountingSource()
    results = measure(source, config(tmp_path, greedy=True), CASE1)
    assert {request.temperature for request in source.requests} == {0.0}
    assert results.identity.sampling == "greedy"


@pytest.mark.parametrize("by", [-1, 1])
def test_an_answer_of_another_length_is_no_sample(tmp_path: Path, by: int) -> None:
    class Wrong(CountingSource):
        def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
            return super().stream(replace(request, max_new_tokens=request.max_new_tokens + by), emit)

    with pytest.raises(UserError, match="tokens came back where 4 were asked for"):
        measure(Wrong(), config(tmp_path, ttft_iterations=0, p99_iterations=0, decode_tokens=3), CASE1)


def test_a_resume_keeps_what_the_generator_had_answered_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingSource, "stats", lambda _: {"counters": {"exact": answered}})
    answered = 0
    with pytest.raises(KeyboardInterrupt):
        measure(CountingSource(fail_after=4), config(tmp_path), CASE1)
    answered = 9
    measure(CountingSource(), config(tmp_path, resume=True), CASE1)
    assert read_environment(tmp_path / ENVIRONMENT)["cases"][CASE1.name]["served_before"] == 0


def test_a_warm_up_of_several_tokens_makes_one_token_warm(tmp_path: Path) -> None:
    results = measure(CountingSource(), config(tmp_path, warmup=1, decode_tokens=3), CASE1)
    assert {sample.warmth for sample in results.samples} == {"warm"}


def test_the_gpu_is_metered_from_a_rows_first_request_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laps: list[int] = []
    source = CountingSource()
    source.info = replace(source.info, environment={"gpu": {"uuid": "GPU-0"}})

    class Meter:
        def __init__(self, uuid: str) -> None:
            assert uuid == "GPU-0"

        def lap(self) -> dict[str, Any]:
            laps.append(len(source.requests))
            return {}

        def close(self) -> None:
            pass

    monkeypatch.setattr("hybridgraph.bench.run.GpuMeter", Meter)
    measure(source, config(tmp_path, prompt_lengths=(3,), warmup=1), CASE1)
    assert laps == [1, 3, 3, 7]

"""Make every generated part of the documentation and of the published results again.

    python docs/generate.py            # writes them
    python docs/generate.py --check    # says what would change; the exit code is 1 where something would

A generated part of a page stands between ``<!-- begin NAME WORDS -->`` and ``<!-- end -->``: NAME is a function in
PARTS, WORDS are its arguments. Needs pandas, but neither torch nor a GPU.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hybridgraph.bench import columns
from hybridgraph.cases import CASE1, CASE2, CASE4, CASE4_FUSED, CASES, HF_COMPILED, PEERS, SGLANG_FULL, VLLM_FULL, Case
from hybridgraph.config import OWNERS, own_settings_of
from hybridgraph.places import PUBLISHED
from hybridgraph.report import grid
from hybridgraph.report import markdown as report
from hybridgraph.report.claims import SPEEDUP_CLAIMS
from hybridgraph.report.final import REPORT, Derived, derive
from hybridgraph.report.tables import figure
from hybridgraph.settings import Setting

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PART = re.compile(r"(<!-- begin (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
EARLIER = ROOT / "docs" / "results" / "earlier_runs.csv"
COMPLETE = ("output", "output/h100", "h200", "repeated", "h100")  # directories of complete runs, then and now

markdown = partial(grid.markdown, width=118)


def main(arguments: list[str]) -> int:
    """Write what has changed, or with ``--check`` name it; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    changed = [path for path, text in generated() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{'would change' if arguments else 'writing'} {path.relative_to(ROOT)}")
    if not arguments:
        for path, text in generated():
            path.write_text(text, encoding="utf-8")
    return 1 if arguments and changed else 0


def generated() -> Iterator[tuple[Path, str]]:
    """Every file with generated parts, and what it should hold."""
    for path in sorted(PUBLISHED.rglob(REPORT)):
        for name, text in derived(str(path.parent.relative_to(PUBLISHED))).texts().items():
            yield path.with_name(name), text
    for page in PAGES:
        yield page, PART.sub(_filled, page.read_text(encoding="utf-8"))


def _filled(part: re.Match[str]) -> str:
    name, *words = part[2].split()
    return f"{part[1]}\n{PARTS[name](*words)}\n\n{part[3]}"


# What the published runs hold


@cache
def derived(run: str) -> Derived:
    """The tables of a published run."""
    return derive(PUBLISHED / run)


@cache
def rows(run: str, case: Case, kind: str) -> pd.DataFrame | None:
    """A result file of a published run by prompt length; None where there is none."""
    path = PUBLISHED / run / f"{case.name}_{kind}.csv"
    return pd.read_csv(path, index_col="prompt_length") if path.exists() else None


@cache
def environment(run: str) -> dict[str, Any]:
    """What ``environment.json`` of a published run tells of its cases."""
    cases: dict[str, Any] = json.loads((PUBLISHED / run / "environment.json").read_text(encoding="utf-8"))["cases"]
    return cases


def mean(run: str, case: Case, kind: str, column: str) -> float:
    """A column's average over the lengths; NaN where it was not measured."""
    table = rows(run, case, kind)
    return float("nan") if table is None else float(table[column].mean())


# Parts of the pages


def configuration(run: str) -> str:
    """On what a run was measured, and how: a list."""
    case = environment(run)[CASE4_FUSED.name]
    told, asked = case["source"]["environment"], case["configuration"]
    gpu, packages = told["gpu"], told["packages"]
    lengths = ", ".join(map(str, asked["prompt_lengths"]))
    lines = [
        f"One {gpu['name']} (power cap {gpu['power_cap_w']:.0f} W), driver {gpu['driver']}",
        f"PyTorch {packages['torch']}, CUDA {told['torch_cuda']}, transformers {packages['transformers']}",
        f"Shape of {asked['model']}, {asked['dtype']}, random weights",
        f"Prompts of {lengths} tokens",
        f"{asked['ttft_iterations']} requests a length for TTFT, then {asked['p99_iterations']} for P99: back to back, "
        f"no warm-up, temperature {asked['temperature']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def cases(run: str, *wanted: str) -> str:
    """The study's cases in a run, a row each: averages over the lengths, in ms, the least of each column in bold."""
    found = {
        "warm TTFT": ("ttft", "warm_mean_ms"),
        "device": ("ttft", "device_ms"),
        "P99": ("p99", "p99_ms"),
        "ITL": ("decode", "itl_mean_ms"),
    }
    names = [word.replace("_", " ") for word in wanted] or list(found)
    values = pd.DataFrame({name: [mean(run, case, *found[name]) for case in CASES] for name in names})
    lines = []
    for case, cells in zip(CASES, _marked(values), strict=True):
        measured = rows(run, case, "ttft") is not None
        lines.append([case.title, *(cells if measured else ["not measured", *cells[1:]]), *_ratios(run, case)])
    return markdown(["case", *names, "gain", "× floor"], lines)


def _marked(values: pd.DataFrame) -> list[list[str]]:
    """Cells, the least of each column in bold."""
    least = values.min()
    return [
        [f"**{figure(value)}**" if value == least[name] else figure(value) for name, value in row.items()]
        for _, row in values.iterrows()
    ]


def _ratios(run: str, case: Case) -> tuple[str, str]:
    """How many times as fast as the baseline a case is to the first token, and how many times its floor it takes."""
    warm, floor = (mean(run, case, "ttft", column) for column in ("warm_mean_ms", "floor_ms"))
    return figure(mean(run, CASE1, "ttft", "warm_mean_ms") / warm, " ×"), figure(warm / floor, " ×")


def table(run: str, metric: str) -> str:
    """A metric of a run over prompt lengths."""
    return report.metric_section(derived(run).tables[metric])


def ablation(run: str) -> str:
    """The cases with one setting changed."""
    return report.ablation_section(derived(run).variants)


def claims(run: str) -> str:
    """What the study claims, and whether it held in a run."""
    return report.claims_section(derived(run).results, derived(run).tables, derived(run).evidence)


def study(run: str) -> str:
    """The study's figures beside those of a run."""
    return report.study_section(derived(run).results, derived(run).tables)


def graphs(run: str) -> str:
    """What a graph cost and saved in a run."""
    return report.economics_section(derived(run).results)


def energy(run: str) -> str:
    """What the GPU spent in a run."""
    return report.spent_section(derived(run).results)


def forwards(run: str) -> str:
    """Device time of one forward when its graph was captured, without and with the graph, mean of the lengths."""
    lines = []
    for case, name in ((CASE4, "Hugging Face"), (CASE4_FUSED, "fused")):
        costs = environment(run)[case.name]["stats"]["capture_costs"]
        measured = [costs[str(length)] for length in rows(run, case, "ttft").index]
        lines.append([name, *(figure(_average(measured, key)) for key in ("eager_ms", "replay_ms"))])
    return markdown(["forward", "eager, ms", "as a graph, ms"], lines)


def _average(costs: list[Mapping[str, float]], key: str) -> float:
    return sum(cost[key] for cost in costs) / len(costs)


def new_lengths(run: str) -> str:
    """First and warm requests at lengths that no graph was captured for."""
    shown = (CASE2, CASE4, CASE4_FUSED)
    lines = []
    for length in rows(run, CASE4_FUSED, "ttft").index:
        cells = []
        for case in shown:
            row = rows(run, case, "ttft").loc[length]
            first = "cold" if pd.isna(row["first_seen_ms"]) else figure(float(row["first_seen_ms"]))
            cells += [first, figure(float(row["warm_mean_ms"]))]
        lines.append([str(length), *cells])
    heading = [cell for case in shown for cell in (f"{case.label}, first", "warm")]
    return markdown(["tokens", *heading], lines)


def pauses() -> str:
    """What pauses between requests change for the fused hybrid, on each machine."""
    runs = {
        "h200": {0: "", 5: "/apart_5ms", 20: "/apart_20ms", 100: "/apart_100ms"},
        "repeated": {0: "", 5: "/apart_5ms"},
        "peers": {0: "", 5: "/apart_5ms"},
        "h100": {0: "", 5: "/apart_5ms"},
    }
    lines = []
    for name, directories in runs.items():
        for pause, directory in directories.items():
            run = name + directory
            warm, device, floor = (mean(run, CASE4_FUSED, "ttft", c) for c in ("warm_mean_ms", "device_ms", "floor_ms"))
            tail = rows(run, CASE4_FUSED, "p99")
            largest = float((tail["p99_ms"] / tail["mean_ms"]).max())
            cells = (figure(warm), figure(device), f"{warm / floor:.3f} ×", f"{largest:.3f}")
            lines.append([f"`{name}`", str(pause), *cells])
    return markdown(["run", "pause, ms", "warm TTFT", "device", "× floor", "P99 / mean, largest"], lines, keys=2)


def growth() -> str:
    """Device time of the fused hybrid over a long range of lengths, and how many times the floor that is."""
    runs = ("h200", "repeated", "h100")
    sweeps = {run: rows(f"{run}/length_sweep", CASE4_FUSED, "ttft") for run in runs}
    lines = []
    for length in sweeps["h200"].index:
        cells = []
        for sweep in sweeps.values():
            row = sweep.loc[length]
            device = float(row["device_ms"])
            cells += [figure(device), figure(device / float(row["floor_ms"]), " ×")]
        lines.append([str(length), *cells])
    heading = [cell for run in runs for cell in (f"{run}, ms", "× floor")]
    return markdown(["tokens", *heading], lines, together=2)


def engines(run: str) -> str:
    """Every engine of a run, back to back and 5 ms apart: averages over the lengths, in ms."""
    found = {
        "warm TTFT": (run, "ttft", "warm_mean_ms"),
        "P99": (run, "p99", "p99_ms"),
        "ITL": (run, "decode", "itl_mean_ms"),
        "warm TTFT, apart": (f"{run}/apart_5ms", "ttft", "warm_mean_ms"),
        "P99, apart": (f"{run}/apart_5ms", "p99", "p99_ms"),
    }
    shown = [case for case in (*CASES, *PEERS) if rows(run, case, "ttft") is not None]
    values = pd.DataFrame(
        {name: [mean(where, case, *column) for case in shown] for name, (where, *column) in found.items()}
    ).dropna(axis="columns", how="all")
    lines = [[case.title, *cells] for case, cells in zip(shown, _marked(values), strict=True)]
    return markdown(["engine", *values], lines)


def shared_buffers() -> str:
    """Warm TTFT by messages and by shared buffers."""
    ways = [f"h200/shared_buffers/{way}" for way in ("messages", "shared")]
    lines = []
    for case in (CASE4, CASE4_FUSED):
        for length in rows(ways[0], case, "ttft").index:
            times = (float(rows(way, case, "ttft").loc[length, "warm_mean_ms"]) for way in ways)
            lines.append([case.title, str(length), *map(figure, times)])
    return markdown(["case", "tokens", "messages, ms", "shared buffers, ms"], lines, keys=2)


# Runs from before


def _history() -> pd.DataFrame:
    """The averages of every run, a row a case: those in the history, and those that are published."""
    earlier = pd.read_csv(EARLIER).drop(columns=["held_by", "run_id", "model"])
    found = []
    for path in PUBLISHED.rglob("*_ttft.csv"):
        name, run = path.name.removesuffix("_ttft.csv"), str(path.parent.relative_to(PUBLISHED))
        case = next((case for case in (*CASES, *PEERS) if case.name == name), None)
        if case is None or "ablation" in run:
            continue
        first = rows(run, case, "ttft").iloc[0]
        told = {"date": first["started"][:10], "commit": first["commit"], "directory": run, "case": name}
        told |= {"device": first["device"], "protocol": first["protocol"]}
        ttft = {"warm_ms": "warm_mean_ms", "protocol_ms": "mean_ms", "floor_ms": "floor_ms"}
        found.append(told | {short: mean(run, case, "ttft", column) for short, column in ttft.items()})
    return pd.concat([earlier, pd.DataFrame(found)], ignore_index=True)


def _runs_of(history: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row a run (date, commit, device), a column a case."""
    keys = ["date", "commit", "device"]
    return history.pivot_table(index=keys, columns="case", values=value, aggfunc="first").reset_index()


def _complete_runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every complete run of the study's protocol, a row each: warm means by case, and the protocol's."""
    history = _history()
    chosen = history[(history["protocol"] == "paper") & history["directory"].isin(COMPLETE)]
    return _runs_of(chosen, "warm_ms"), _runs_of(chosen, "protocol_ms")


def complete_runs() -> str:
    """Warm TTFT of every complete run."""
    warm, _ = _complete_runs()
    lines = [
        [run["date"], run["commit"][:7], gpu(run), *(figure(float(run[case.name])) for case in CASES[:-1])]
        for _, run in warm.iterrows()
    ]
    return markdown(["date", "commit", "GPU", *(case.label for case in CASES[:-1])], lines, keys=3)


def complete_gains() -> str:
    """How many times as fast as the baseline the hybrids were, by both ways to count; bold where the claim holds."""
    claimed = next(claim.claimed for claim in SPEEDUP_CLAIMS if (claim.over, claim.metric) == (CASE1, "ttft"))
    warm, protocol = _complete_runs()
    gains = [runs[CASE1.name] / runs[case.name] for runs in (warm, protocol) for case in (CASE4, CASE4_FUSED)]
    lines = []
    for number, (_, run) in enumerate(warm.iterrows()):
        cells = [f"{gain.iloc[number]:.1f} ×" for gain in gains]
        marked = [f"**{c}**" if g.iloc[number] >= claimed else c for c, g in zip(cells, gains, strict=True)]
        lines.append([run["date"], gpu(run), *marked])
    lines.append([f"at least {claimed} ×", "", *(f"{int((gain >= claimed).sum())} of {len(gain)}" for gain in gains)])
    heading = ["JIT+CUDA, warm", "fused, warm", "JIT+CUDA, protocol", "fused, protocol"]
    return markdown(["date", "GPU", *heading], lines, keys=2)


def earlier_pauses() -> str:
    """The fused hybrid with pauses of 5 ms, in every run of the study's protocol."""
    history = _history()
    chosen = history[(history["protocol"] == "paper, 5 ms apart") & (history["case"] == CASE4_FUSED.name)]
    lines = [
        [run["date"], run["commit"][:7], gpu(run), figure(run["warm_ms"]), f"{run['warm_ms'] / run['floor_ms']:.3f} ×"]
        for _, run in chosen.sort_values(["date", "commit"]).iterrows()
    ]
    return markdown(["date", "commit", "GPU", "warm TTFT", "× floor"], lines, keys=3)


def gpu(run: pd.Series) -> str:
    """Which GPU a run was on, in a word."""
    return str(run["device"]).split()[1]


def earlier_engines() -> str:
    """Warm TTFT of other engines on H200s, in every run of them."""
    history = _history()
    history = history[history["directory"].str.contains("peers") & history["device"].str.contains("H200")]
    shown = (HF_COMPILED, VLLM_FULL, SGLANG_FULL, CASE4_FUSED)
    lines = []
    for apart in (False, True):
        for _, run in _runs_of(history[history["protocol"].str.contains("apart") == apart], "warm_ms").iterrows():
            cells = [figure(float(run.get(case.name, float("nan")))) for case in shown]
            lines.append([run["date"], run["commit"][:7], "5" if apart else "0", *cells])
    return markdown(["date", "commit", "pause, ms", *(case.label for case in shown)], lines, keys=3)


def versions(*runs: str) -> str:
    """When runs were made, by which commit, on what: a column a run."""
    columns_of = {run: _versions(run) for run in runs}
    names = list(dict.fromkeys(name for found in columns_of.values() for name in found))
    lines = [[name, *(found.get(name, "") for found in columns_of.values())] for name in names]
    return markdown(["", *(f"`{run}`" for run in runs)], lines)


def _versions(run: str) -> dict[str, str]:
    told = environment(run)
    sources = [case["source"]["environment"] for case in told.values()]
    ours = next((source for source in sources if source.get("torch_cuda")), sources[0])
    found = {
        "date": min(case["identity"]["started"] for case in told.values())[:10],
        "commit": " ".join(sorted({case["identity"]["commit"] for case in told.values()})),
        "GPU": ours["gpu"]["name"].removeprefix("NVIDIA "),
        "driver": ours["gpu"]["driver"],
        "CUDA": ours.get("torch_cuda") or "",
        "Python": ours["python"],
    }
    for package in ("torch", "triton", "transformers", "vllm", "sglang"):
        known = [source["packages"].get(package) for source in (ours, *sources)]
        found[package] = next((version for version in known if version), "")
    return {name: version for name, version in found.items() if version}


# Settings and columns


def flags() -> str:
    """Every setting as its flag, by group as in ``--help``: from the records of the configuration."""
    groups: dict[str, list[Setting]] = {}
    for owner in OWNERS:
        groups.setdefault(owner.GROUP, []).extend(own_settings_of(owner))
    parts = []
    for group, settings in groups.items():
        lines = ["| flag | default | values | cases | meaning |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(_flag_cells(setting))} |" for setting in settings]
        parts.append(f"## {group.capitalize()}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _flag_cells(setting: Setting) -> tuple[str, ...]:
    """Flag, default, values, cases that use it, meaning."""
    default, about = setting.default, [case.key.removeprefix("case")[0] for case in CASES if setting.concerns(case)]
    used = ", ".join(dict.fromkeys(about)) if len(about) < len(CASES) else "all"
    if isinstance(default, bool):
        return f"`{setting.argument(not default)}`", "off", "", used, f"{'do not ' if default else ''}{setting.help}"
    values = ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.limits is not None:
        values = "{} to {}".format(*(f"{limit:,}" for limit in setting.limits))
    usual = setting.unset if default is None else f"`{setting.as_text(default)}`"
    return f"`{setting.flag}`", usual, values, used, setting.help


def column_table(kind: str) -> str:
    """Every column of a result file: type, unit, meaning."""
    lines = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    told: dict[str, columns.Column] = getattr(columns, kind)
    lines += [f"| `{name}` | {c.type} | {c.unit} | {c.meaning} |" for name, c in told.items()]
    return "\n".join(lines)


PARTS: dict[str, Callable[..., str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        configuration, cases, table, ablation, claims, study, graphs, energy, forwards, new_lengths, pauses, growth,
        engines, shared_buffers, complete_runs, complete_gains, earlier_engines, earlier_pauses, versions, flags,
        column_table,
    )
}  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

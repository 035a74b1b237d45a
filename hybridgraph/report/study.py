"""The study's own figures, as it prints them: ``study_figures/ttft_ms.csv`` and ``study_figures/p99_ms.csv``.

They are the two tables of its README, cell by cell, with their rows of averages and the winners it names:
https://github.com/divakar-yadav/Hybrid-JIT-CUDA-Graph-Optimization-for-Low-Latency-Large-Language-Model-Inference
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from hybridgraph.cases import CASE1, CASE2, CASE3, CASE4, CASE5

STUDY = (CASE1, CASE2, CASE3, CASE4, CASE5)  # those that it measured
METRICS = ("ttft", "p99")
_PRINTED_AVERAGE = "AVERAGE"


@cache
def printed(metric: str) -> pd.DataFrame:
    """A table of the study, in ms: rows by prompt length and the averages last, columns as ours, and its winners."""
    path = Path(__file__).with_name("study_figures") / f"{metric}_ms.csv"
    return pd.read_csv(path, index_col="prompt_length").rename(columns=lambda name: name.removesuffix("_ms"))


@cache
def figures(metric: str) -> pd.DataFrame:
    """The same, measured rows and figures only."""
    table = printed(metric).drop(index=_PRINTED_AVERAGE)[[case.column for case in STUDY]]
    return table.set_index(table.index.astype(int)).astype(float)

"""The commands of ``python -m hybridgraph``: what the shell scripts and the complete run start."""

from __future__ import annotations

from collections.abc import Sequence

from hybridgraph.cases import CASES, PEERS
from hybridgraph.cli.commands import run_case, run_pair, serve
from hybridgraph.cli.study import check, run_study
from hybridgraph.system.console import say

USAGE = """\
usage: python -m hybridgraph study [FLAGS]         every case, each as a process of its own, then the tables
       python -m hybridgraph case KEY [FLAGS]      one case, a generator and its client where it has them
       python -m hybridgraph pair KEY [FLAGS]      the same, of a case that has them
       python -m hybridgraph serve KEY [FLAGS]     the generator of such a case by itself
       python -m hybridgraph check [FLAGS]         whether a complete run could be measured
KEY is one of: """


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` names; returns the exit code."""
    cases = {case.key: case for case in (*CASES, *PEERS)}
    match list(argv):
        case ["study", *flags]:
            return run_study(flags)
        case ["check", *flags]:
            return check(flags)
        case ["serve", key, *flags] if key in cases and cases[key].generator:
            return serve(cases[key], flags)
        case ["case" | "pair", key, *flags] if key in cases and cases[key].generator:
            return run_pair(cases[key], flags)
        case ["case", key, *flags] if key in cases:
            return run_case(cases[key], flags)
    say(USAGE + ", ".join(cases))
    return 2

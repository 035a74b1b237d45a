"""Case 1, the baseline: an unmodified Hugging Face model answers through ``model.generate()``.

Held fixed, as in every case: the token ids, the sampling, the measuring loop, the clock.
Varied: nothing. This is what the other cases are compared with.

    python case1_baseline.py --ttft-iterations 5 --p99-iterations 100
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE1
from hybridgraph.cli.commands import run_case

if __name__ == "__main__":
    raise SystemExit(run_case(CASE1))

"""The final tables, plots and report, from whatever result files exist. Needs no GPU and no torch.

Rows of different hardware, models, precisions or load formats never share a table: what is left
out is named. A case that did not run is an empty column with its reason.

    python generate_final_tables.py --output-dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.report.main import generate_final_tables

if __name__ == "__main__":
    raise SystemExit(generate_final_tables())

"""``python -m hybridgraph COMMAND``, or the same by this file's path, from wherever it is started."""

import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command handles it: Ctrl-C has nothing to tell of imports

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT / "hybridgraph"))]

from hybridgraph.cli.main import main  # noqa: E402

raise SystemExit(main(sys.argv[1:]))

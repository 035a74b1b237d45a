"""``python -m hybridgraph COMMAND``: what the shell scripts call."""

import sys

from hybridgraph.cli.commands import main

raise SystemExit(main(sys.argv[1:]))

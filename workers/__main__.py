"""``python -m workers``: the ``workers`` command."""

import sys
from pathlib import Path

# Python puts the current folder first on the path here; an `app` that lies there is not ours.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workers.cli import main

main()

"""``python -m workers``: the ``workers`` command."""

from workers.cli import main

main()

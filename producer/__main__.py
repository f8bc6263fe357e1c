"""``python -m producer``: the ``producer`` command."""

from producer.cli import main

main()

"""What reads the results table: export, status, failures; the ``results`` command."""

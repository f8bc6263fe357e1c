"""Where ``celery -A workers`` finds the app."""

from workers.own_modules import refuse_foreign_modules

refuse_foreign_modules()

from workers.lifecycle import make_worker_app  # noqa: E402 - it imports our other packages

app = make_worker_app()

#!/bin/sh
# Healthy: a worker of this container answers on the queue's control channel. It does once its model is loaded.
set -eu
/usr/local/bin/entrypoint celery -A workers inspect ping --timeout 10 --json | grep -q "@$(hostname)\""

#!/bin/sh
# Healthy: Redis answers. The password goes by the environment, which only this user can read.
set -eu
REDISCLI_AUTH="$(cat "${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}")"
export REDISCLI_AUTH
redis-cli ping | grep -q PONG

#!/bin/sh
# Builds REDIS_URL and DATABASE_URL from secret files, then becomes the command: so no password stands in the compose
# file, in `docker inspect`, or on a command line. Each is left alone where it is set already.
set -eu

# The one line of a secret file, written so that it can stand in a URL.
quoted() {
    python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.stdin.read().strip(), safe=""))' < "$1"
}

if [ -z "${REDIS_URL:-}" ] && [ -r "${REDIS_PASSWORD_FILE:-}" ]; then
    REDIS_URL="${REDIS_SCHEME:-redis}://:$(quoted "$REDIS_PASSWORD_FILE")@${REDIS_HOST:-redis}:${REDIS_PORT:-6379}/0${REDIS_OPTIONS:-}"
    export REDIS_URL
fi
if [ -z "${DATABASE_URL:-}" ] && [ -r "${POSTGRES_PASSWORD_FILE:-}" ]; then
    DATABASE_URL="postgresql://${POSTGRES_USER:-farm}:$(quoted "$POSTGRES_PASSWORD_FILE")@${POSTGRES_HOST:-postgres}:${POSTGRES_PORT:-5432}/${POSTGRES_DB:-farm}${POSTGRES_OPTIONS:-}"
    export DATABASE_URL
fi

# In a container the embedded broker and SQLite would be each container's own: nobody would see their work.
if [ -z "${REDIS_URL:-}" ] || [ -z "${DATABASE_URL:-}" ]; then
    echo "entrypoint: set REDIS_URL and DATABASE_URL, or REDIS_PASSWORD_FILE and POSTGRES_PASSWORD_FILE" >&2
    exit 64
fi

exec "$@"

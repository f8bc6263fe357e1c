#!/bin/sh
# Starts Redis with the password of a secret file. It goes into a configuration file in memory that only this user can
# read: an argument would be in every process list.
set -eu
umask 077

password="$(sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' "${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}")"
if [ -z "$password" ]; then
    echo "redis: the password file is empty" >&2
    exit 64
fi

configuration="${TMPDIR:-/tmp}/redis.conf"
{
    printf 'requirepass "%s"\n' "$password"
    # A queue survives a restart; a power cut loses a second, which enqueueing again makes good.
    printf 'dir /data\nappendonly yes\nappendfsync everysec\nsave ""\n'
    # A full Redis refuses new messages, and the producer waits; it must never drop old ones.
    printf 'maxmemory %s\nmaxmemory-policy noeviction\n' "${REDIS_MAXMEMORY:-2gb}"
} > "$configuration"

exec redis-server "$configuration"

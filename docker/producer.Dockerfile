# The producer, the `results` command and the migrations: no torch, no transformers, no GPU. From the repository's root:
#
#     docker build -f docker/producer.Dockerfile -t relation-farm-producer .
#
# Images are pinned by version; add the digest that you have verified.
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp

RUN useradd --system --uid 10001 --user-group --home-dir /tmp --shell /usr/sbin/nologin farm

WORKDIR /opt/farm
COPY constraints.txt docker/producer-requirements.txt ./
RUN pip install -c constraints.txt -r producer-requirements.txt

COPY docker/entrypoint.sh /usr/local/bin/entrypoint
COPY pyproject.toml setup.py README.md ./
COPY alembic alembic
COPY app app
COPY producer producer
RUN pip install --no-deps -e . && python -m compileall -q app producer

USER 10001:10001
# Its commands come to an end: there is nothing to ask after.
HEALTHCHECK NONE
ENTRYPOINT ["entrypoint"]
CMD ["producer", "--help"]

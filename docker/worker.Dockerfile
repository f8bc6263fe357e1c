# The GPU worker. From the repository's root:
#
#     docker build -f docker/worker.Dockerfile -t relation-farm-worker .
#
# No CUDA base image: torch's own wheels carry the CUDA libraries that they were built for, and the driver comes from
# the host through the NVIDIA container toolkit. Images are pinned by version; add the digest that you have verified.
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --system --uid 10001 --user-group --home-dir /tmp --shell /usr/sbin/nologin farm

WORKDIR /opt/farm
# The dependencies first: they are gigabytes and change seldom. Their list is in pyproject.toml alone, and pip needs
# the packages there to read it, if only by name.
COPY pyproject.toml setup.py constraints.txt constraints-vllm.txt README.md ./
# With vLLM: --build-arg EXTRA=[vllm] --build-arg CONSTRAINTS=constraints-vllm.txt (driver 580 or newer)
ARG EXTRA=""
ARG CONSTRAINTS=constraints.txt
RUN mkdir -p app producer workers alembic/versions \
    && pip install -c "${CONSTRAINTS}" -e ".${EXTRA}" \
    && rm -rf app producer workers alembic

COPY docker/entrypoint.sh /usr/local/bin/entrypoint
COPY docker/worker-health.sh /usr/local/bin/worker-health
COPY alembic alembic
COPY app app
COPY producer producer
COPY workers workers
RUN pip install --no-deps -e . && python -m compileall -q app producer workers

USER 10001:10001
# A model takes minutes to load; until then nothing answers.
HEALTHCHECK --interval=60s --timeout=30s --start-period=20m --retries=3 CMD ["worker-health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["entrypoint"]
CMD ["workers", "up"]

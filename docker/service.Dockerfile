# The service, `uino-deploy serve`, on CPUs. Never built or run by us.
# From the repository's root: docker build -f docker/service.Dockerfile -t uino-deploy:service .
FROM python:3.11-slim-bookworm

WORKDIR /opt/uino-deploy
COPY pyproject.toml README.md LICENSE ./
COPY uino_deploy uino_deploy
COPY kernels kernels
COPY export export
COPY benchmarks benchmarks

RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ".[cpu,serve]" \
    && install -d -o 10001 -g 10001 /classes

# The service writes to /classes alone; what the runtime keeps for a user goes with the container.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp
WORKDIR /work
RUN uino-deploy --version
ENTRYPOINT ["uino-deploy"]
CMD ["doctor"]

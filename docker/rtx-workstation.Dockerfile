# RTX workstations: TensorRT-RTX from PyPI; it builds engines without a GPU too. Never built or run by us.
# From the repository's root: docker build -f docker/rtx-workstation.Dockerfile -t uino-deploy:rtx-workstation .
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/uino-deploy
COPY pyproject.toml README.md LICENSE ./
COPY uino_deploy uino_deploy
COPY kernels kernels
COPY export export
COPY benchmarks benchmarks

# ONNX Runtime comes along, so that the same image checks a bundle on the CPU.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ".[cpu,tensorrt-rtx]"

ENV PATH=/opt/venv/bin:$PATH
WORKDIR /work
RUN uino-deploy --version
ENTRYPOINT ["uino-deploy"]
CMD ["doctor"]

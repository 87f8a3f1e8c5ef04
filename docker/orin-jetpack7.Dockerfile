# Jetson Orin on JetPack 7.2: TensorRT 10.16, CUDA 13.2. Never built or run by us.
# From the repository's root: docker build -f docker/orin-jetpack7.Dockerfile -t uino-deploy:orin-jetpack7 .
FROM nvcr.io/nvidia/tensorrt:26.03-py3

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/uino-deploy
COPY pyproject.toml README.md LICENSE ./
COPY uino_deploy uino_deploy
COPY kernels kernels
COPY export export
COPY benchmarks benchmarks

# Plugin attributes fail under NumPy 2.4 before TensorRT 11.2.1; TensorRT is the image's.
RUN python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir . "numpy>=1.26,<2.4" "cuda-python>=13.0,<14"

ENV PATH=/opt/venv/bin:$PATH
WORKDIR /work
RUN uino-deploy --version
ENTRYPOINT ["uino-deploy"]
CMD ["doctor"]

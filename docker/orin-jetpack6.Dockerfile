# Jetson Orin on JetPack 6.2: TensorRT 10.3, CUDA 12.6, Python 3.10. Never built or run by us.
# From the repository's root: docker build -f docker/orin-jetpack6.Dockerfile -t uino-deploy:orin-jetpack6 .
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-libnvinfer python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/uino-deploy
COPY pyproject.toml README.md LICENSE ./
COPY uino_deploy uino_deploy
COPY kernels kernels
COPY export export
COPY benchmarks benchmarks

# The bindings of TensorRT 10.3 corrupt arrays under NumPy 2; TensorRT itself is JetPack's.
RUN python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir . "numpy>=1.26,<2" "cuda-python>=12.6,<13"

ENV PATH=/opt/venv/bin:$PATH
WORKDIR /work
RUN uino-deploy --version
ENTRYPOINT ["uino-deploy"]
CMD ["doctor"]

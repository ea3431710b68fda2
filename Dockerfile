# docker build -t ensemble-kd .                                  CPU
# docker build -t ensemble-kd:cuda --build-arg VARIANT=cuda .    NVIDIA GPUs: PyPI's torch brings CUDA's libraries
#
# docker run --rm --shm-size 2g -v "$PWD:/work" ensemble-kd run digits
# docker run --rm --shm-size 2g -v "$PWD:/work" --gpus all ensemble-kd:cuda run my.yaml

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ensemble_kd ensemble_kd
COPY jobs jobs
COPY tune tune
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG VARIANT=cpu
ARG TORCH=">=2.9,<2.14"
ARG EXTRAS=onnx,serve,cluster,sentences

# wget: KubeRay asks Ray's processes by it whether they live.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ensemble \
    && mkdir /work \
    && chown ensemble /work

# torch first, on its own: what follows takes the variant that is there. Bounds stand in TORCH and pyproject.toml.
# hadolint ignore=DL3013
RUN case "${VARIANT}" in \
        cpu) pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch${TORCH}" ;; \
        cuda) pip install --no-cache-dir "torch${TORCH}" ;; \
        *) echo "VARIANT: cpu or cuda, got ${VARIANT}" >&2; exit 2 ;; \
    esac
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN set -- /wheels/*.whl && pip install --no-cache-dir "$1[${EXTRAS}]"

# By number: Kubernetes checks runAsNonRoot by it.
USER 1000
WORKDIR /work
# One torch thread a worker: more of them on busy cores are far slower than one.
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
ENTRYPOINT ["ensemble-kd"]
CMD ["--help"]

# One wheel, three images: `cpu` (no accelerator), `neuron` (AWS Inferentia2), and `sagemaker`, which is `neuron`
# (or, with --build-arg SAGEMAKER_BASE=cpu, `cpu`) as SageMaker runs it.
#
#   docker build --target neuron --tag neuronx-tgi .        make neuronx-tgi
#   ... --build-arg NEURON_STACK=legacy                     make neuronx-tgi NEURON_STACK=legacy
#   docker build --target cpu --tag neuronx-tgi:cpu .       make neuronx-tgi TARGET=cpu
#   docker run IMAGE --help                                 lists the service parameters
#
# docs/image.md tells how to run them, docs/platforms.md where. COPY rather than RUN --mount: Buildah does not notice when what is mounted
# from another stage has changed, and would leave an old wheel in place.

# Where torch without CUDA comes from: with PyPI's own build an image is several gigabytes larger, for nothing.
# Empty: whatever index pip is set up for.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Which generation of AWS's software `neuron` carries: current or legacy.
ARG NEURON_STACK=current
# What `sagemaker` is made of.
ARG SAGEMAKER_BASE=neuron


# -- what pip is asked for, read from pyproject.toml; apart from the code, so that a change there leaves the
#    layer of dependencies alone
FROM debian:bookworm-slim AS requirements
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        python3.11=3.11.* \
        python3.11-venv=3.11.* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN python3.11 -c "import tomllib; \
p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
[open(f'{t}.txt', 'w').write('\n'.join(p['dependencies'] + p['optional-dependencies'].get(t, []))) for t in ('cpu', 'server')]"


# -- the wheel, the same in both images
FROM requirements AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY launcher launcher
COPY neuron_server neuron_server
RUN python3.11 -m venv /venv \
 && /venv/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /wheels .


# -- no accelerator: Debian and its Python
FROM debian:bookworm-slim AS cpu
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates=20* \
        python3.11=3.11.* \
        python3.11-venv=3.11.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --gid 0 --create-home --shell /usr/sbin/nologin tgi \
 && install --directory --owner=tgi --group=root --mode=2775 /data

COPY --from=requirements /requirements/cpu.txt /requirements/constraints.txt /requirements/
ARG TORCH_INDEX
RUN python3.11 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --constraint /requirements/constraints.txt --requirement /requirements/cpu.txt

COPY --from=wheel /wheels /wheels
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl

# The model cache is a group-writable directory of group 0, for those who run the image as some other user.
# Ports below 1024 are open to every user of a Docker container; where they are not, set another PORT.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PORT=80 \
    HUGGINGFACE_HUB_CACHE=/data
EXPOSE 80
USER 1000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=2m --retries=4 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["text-generation-launcher"]

ARG VERSION=unreleased
LABEL org.opencontainers.image.title="neuronx-tgi (cpu)" \
      org.opencontainers.image.description="Text-generation server that speaks the TGI API, with static shapes, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION


# -- AWS Inferentia2: the packages of AWS live in an environment of their own, /opt/neuron, because what they ask of
#    numpy, protobuf and transformers does not go with the server's. The generator runs there; launcher and router in
#    /opt/venv. NEURON_STACK says which of the two stages below that environment is.
FROM ubuntu:22.04 AS ubuntu
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates=20* \
        curl=7.81.* \
        libarchive13=3.6.* \
        libexpat1=2.4.* \
        libpython3.10=3.10.* \
        python3.10=3.10.* \
        python3.10-venv=3.10.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --gid 0 --create-home --shell /usr/sbin/nologin tgi \
 && install --directory --owner=tgi --group=root --mode=2775 /data \
 && curl --fail --silent --show-error --location --output /usr/share/keyrings/aws-neuron.asc \
        https://apt.repos.neuron.amazonaws.com/GPG-PUB-KEY-AMAZON-AWS-NEURON.PUB \
 && echo "deb [signed-by=/usr/share/keyrings/aws-neuron.asc] https://apt.repos.neuron.amazonaws.com jammy main" \
        > /etc/apt/sources.list.d/aws-neuron.list


# -- `current`: optimum-neuron 0.4.5 and what it is built for, Neuron SDK 2.26.1. No aws-neuronx-dkms: the kernel driver
#    is the host's. Runtime 2.28 wants a host driver from 2.24.7 up to, but not including, 2.29.
FROM ubuntu AS stack-current
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        aws-neuronx-collectives=2.28.27.0-bc30ece58 \
        aws-neuronx-runtime-lib=2.28.23.0-dd5879008 \
        aws-neuronx-tools=2.26.14.0 \
 && rm -rf /var/lib/apt/lists/*
# The AWS wheels exist in AWS's own index only; the exact versions keep pip from their namesakes on PyPI.
ARG TORCH_INDEX
RUN python3.10 -m venv /opt/neuron \
 && /opt/neuron/bin/pip install --no-cache-dir --disable-pip-version-check \
        --extra-index-url https://pip.repos.neuron.amazonaws.com \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        grpcio==1.85.1 \
        libneuronxla==2.2.12677.0 \
        llguidance==1.9.1 \
        neuronx-cc==2.21.33363.0 \
        neuronx-distributed==0.15.22404 \
        numpy==1.26.4 \
        'optimum-neuron[neuronx]==0.4.5' \
        protobuf==5.29.6 \
        torch==2.8.0 \
        torch-neuronx==2.8.0.2.10.16998 \
        torchvision==0.23.0 \
        transformers==4.57.6


# -- `legacy`: optimum-neuron 0.0.28, Neuron SDK 2.20.2, for what went with transformers-neuronx: gpt2, opt, bloom,
#    mistral, and models that were compiled then.
FROM ubuntu AS stack-legacy
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        aws-neuronx-collectives=2.22.33.0-d2128d1aa \
        aws-neuronx-runtime-lib=2.22.19.0-5856c0b42 \
        aws-neuronx-tools=2.19.0.0 \
 && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX
RUN python3.10 -m venv /opt/neuron \
 && /opt/neuron/bin/pip install --no-cache-dir --disable-pip-version-check \
        --extra-index-url https://pip.repos.neuron.amazonaws.com \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        grpcio==1.85.1 \
        libneuronxla==2.0.5347.0 \
        llguidance==1.9.1 \
        neuronx-cc==2.15.143.0 \
        neuronx-distributed==0.9.0 \
        numpy==1.25.2 \
        'optimum-neuron[neuronx]==0.0.28' \
        protobuf==3.20.3 \
        'setuptools<80' \
        torch==2.1.2 \
        torch-neuronx==2.1.2.2.3.2 \
        torchvision==0.16.2 \
        transformers==4.48.3 \
        transformers-neuronx==0.12.313


# hadolint ignore=DL3006
FROM stack-${NEURON_STACK} AS neuron
COPY --from=requirements /requirements/server.txt /requirements/constraints.txt /requirements/
RUN python3.10 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint /requirements/constraints.txt --requirement /requirements/server.txt

COPY --from=wheel /wheels /wheels
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl \
 && /opt/neuron/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl

# Root, because who may open /dev/neuron* is up to the host: with its udev rule at mode 0666 `--user 1000` works too,
# with a group of its own add `--group-add $(stat -c %g /dev/neuron0)`.
# The long start: a model that was never compiled for this shape is compiled before the first answer.
ENV PATH=/opt/venv/bin:/opt/aws/neuron/bin:$PATH \
    LD_LIBRARY_PATH=/opt/aws/neuron/lib \
    NEURON_TGI_GENERATOR_PYTHON=/opt/neuron/bin/python \
    PYTHONUNBUFFERED=1 \
    PORT=80 \
    HUGGINGFACE_HUB_CACHE=/data
EXPOSE 80
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60m --retries=4 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["text-generation-launcher"]

ARG VERSION=unreleased
ARG NEURON_STACK
LABEL org.opencontainers.image.title="neuronx-tgi" \
      org.opencontainers.image.description="Text-generation server that speaks the TGI API on AWS Inferentia2" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      neuronx-tgi.neuron-stack=$NEURON_STACK


# -- the same as SageMaker runs it: port 8080, its names of the variables, and the one disk that is large there.
#    It wants root, which `cpu` is not.
FROM ${SAGEMAKER_BASE} AS sagemaker
# hadolint ignore=DL3002
USER 0
ENV PORT=8080 \
    HUGGINGFACE_HUB_CACHE=/tmp
EXPOSE 8080
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
ENTRYPOINT ["sagemaker-entrypoint"]


# -- what a build without --target makes, as it makes the last stage
FROM neuron AS default

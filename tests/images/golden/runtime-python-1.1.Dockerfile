# What Python apps run on (target `run`), and what their environments are made in (target `build`).
# For BuildKit as in Docker 20.10: no external syntax line, no heredocs. The context is the folder runtime_images.
# Index, mirror, proxy and certificates come as the secrets `network` and `ca` (network.py), so that no layer has them.
ARG BASE=spaces/base:bookworm
ARG PYTHON_FROM=apt

FROM ${BASE} AS tools
COPY python/uv.txt /tmp/uv.txt
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get install -q -y --no-install-recommends ca-certificates python3-pip; \
    python3 -m pip install --no-cache-dir --no-deps --require-hashes --target /tmp/uv -r /tmp/uv.txt; \
    install -m 0755 /tmp/uv/bin/uv /usr/local/bin/uv

FROM ${BASE} AS system
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get upgrade -q -y --no-install-recommends; \
    apt-get install -q -y --no-install-recommends ca-certificates tini \
        ffmpeg fonts-dejavu-core git git-lfs libgl1 libglib2.0-0 libsm6 libxext6; \
    git lfs install --system --skip-repo; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*; \
    if getent passwd 1000 >/dev/null; then userdel --remove "$(id -nu 1000)"; fi; \
    groupadd --gid 1000 user; \
    useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash user; \
    install -d -o 1000 -g 1000 /home/user/app

FROM system AS python-apt
ARG PYTHON=3.11
# distutils: Debian keeps it apart; source packages of that time import it.
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get install -q -y --no-install-recommends "python${PYTHON}" python3 python3-distutils; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*

FROM system AS python-uv
ARG PYTHON=3.11
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    --mount=type=bind,from=tools,source=/usr/local/bin,target=/run/tools \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; \
    UV_PYTHON_INSTALL_DIR=/opt/python /run/tools/uv python install --no-cache --no-bin "${PYTHON}"; \
    python="$(UV_PYTHON_INSTALL_DIR=/opt/python /run/tools/uv python find --managed-python --no-project "${PYTHON}")"; \
    ln -s "${python}" "/usr/local/bin/python${PYTHON}"; \
    ln -s "${python}" /usr/local/bin/python3; \
    find /opt/python -name EXTERNALLY-MANAGED -delete; \
    "${python}" -m compileall -q --invalidation-mode unchecked-hash -x '/(test|tests|lib2to3)/' \
        "$("${python}" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

FROM python-${PYTHON_FROM} AS run
ARG PYTHON=3.11
COPY python/start_hook.py /opt/spaces/runtime_images/python/
RUN set -eu; \
    "python${PYTHON}" -m compileall -q --invalidation-mode unchecked-hash /opt/spaces; \
    install -d -o 1000 -g 1000 /opt/env
# The NVIDIA runtime gives every GPU to an image that says nothing; which one an app holds is for the orchestrator to say.
ENV HOME=/home/user \
    LANG=C.UTF-8 \
    PATH=/opt/env/bin:/usr/local/bin:/usr/bin:/bin \
    PORT=7860 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /home/user/app
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--"]

FROM run AS build
ARG PYTHON=3.11
ARG PYTHON_FROM=apt
USER 0:0
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    if [ "${PYTHON_FROM}" = apt ]; then headers="python${PYTHON}-dev"; else headers=; fi; \
    apt-get install -q -y --no-install-recommends build-essential cmake curl libffi-dev libssl-dev pkg-config ${headers}; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*
COPY --from=tools /usr/local/bin/uv /usr/local/bin/uv
COPY python/seal.py /opt/spaces/runtime_images/python/
USER 1000:1000

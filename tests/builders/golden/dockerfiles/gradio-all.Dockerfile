# Made for sdk: gradio. In a checkout of the repository: docker build --file <this> .
FROM spaces/build:1 AS environment
ARG SPACES_SCOPE=scope
ENV UV_INDEX_STRATEGY=unsafe-best-match UV_LINK_MODE=copy UV_PYTHON_INSTALL_DIR=/opt/python NO_COLOR=1
ENV UV_NO_PROGRESS=1 UV_CACHE_DIR=/tmp/uv-cache
USER 0:0
RUN install -d -o 1000 -g 1000 /opt/python
USER 1000:1000
RUN --mount=type=secret,id=network,mode=0444 --mount=type=secret,id=ca,mode=0444 \
    --mount=type=cache,id=scope-uv,target=/tmp/uv-cache,uid=1000,gid=1000 \
    : install pre-requirements.txt; \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; \
    uv venv --quiet --no-project --python 3.12 /opt/env; \
    mkdir -p "$(dirname /tmp/spaces/0/pre-requirements.txt)"; printf '%s\n' \
        'setuptools<81' \
        > /tmp/spaces/0/pre-requirements.txt; \
    mkdir -p /tmp/spaces/0; \
    cd /tmp/spaces/0; \
    uv pip install --python /opt/env -r pre-requirements.txt --
RUN --mount=type=secret,id=network,mode=0444 --mount=type=secret,id=ca,mode=0444 \
    --mount=type=cache,id=scope-uv,target=/tmp/uv-cache,uid=1000,gid=1000 \
    : install 'requirements.txt and gradio 5.9.1'; \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; \
    mkdir -p "$(dirname /tmp/spaces/1/requirements.txt)"; printf '%s\n' \
        pandas==2.2.3 \
        '-r more/extra.txt' \
        'gradio>=4' \
        > /tmp/spaces/1/requirements.txt; \
    mkdir -p "$(dirname /tmp/spaces/1/more/extra.txt)"; printf '%s\n' \
        six \
        '-c limits.txt' \
        > /tmp/spaces/1/more/extra.txt; \
    mkdir -p "$(dirname /tmp/spaces/1/more/limits.txt)"; printf '%s\n' \
        'numpy<2' \
        > /tmp/spaces/1/more/limits.txt; \
    mkdir -p /tmp/spaces/1; \
    cd /tmp/spaces/1; \
    uv pip install --python /opt/env -r requirements.txt -- 'gradio[oauth]==5.9.1' spaces
RUN --mount=type=cache,id=scope-uv,target=/tmp/uv-cache,uid=1000,gid=1000 \
    : seal; set -eu; \
    for site in /opt/env/lib/python3.*/site-packages; do \
        /opt/env/bin/python -I -S /opt/spaces/runtime_images/python/seal.py "$site" /tmp/uv-cache "$(cat /opt/spaces/runtime_images/python/start_hook.py)"; \
    done; \
    mkdir -p /tmp/spaces; uv --no-cache pip freeze --quiet --python /opt/env > /tmp/spaces/lock.txt

FROM spaces/run:1 AS system
ARG SPACES_SCOPE=scope

FROM scratch AS facts
COPY --from=environment /tmp/spaces/lock.txt /lock.txt
COPY --from=system /var/lib/dpkg/status /status

FROM system AS app
COPY --from=environment --chown=0:0 /opt/python /opt/python
COPY --from=environment --chown=0:0 /opt/env /opt/env
COPY --chown=1000:1000 . /home/user/app/
RUN /opt/env/bin/python -m compileall -q --invalidation-mode unchecked-hash /home/user/app || true
ENV PYTHONUNBUFFERED="1"
ENV GRADIO_SERVER_NAME="0.0.0.0"
ENV GRADIO_SERVER_PORT="7860"
ENV GRADIO_ANALYTICS_ENABLED="False"
ENV GRADIO_NUM_PORTS="1"
ENV SYSTEM="spaces"
ENV PORT="7860"
EXPOSE 7860
CMD ["python", "src/main.py"]

# Made for sdk: dash. In a checkout of the repository: docker build --file <this> .
FROM spaces/build:1 AS environment
ARG SPACES_SCOPE=scope
ENV UV_INDEX_STRATEGY=unsafe-best-match UV_LINK_MODE=copy UV_PYTHON_INSTALL_DIR=/opt/python NO_COLOR=1
ENV UV_NO_PROGRESS=1 UV_CACHE_DIR=/tmp/uv-cache
RUN --mount=type=secret,id=network,mode=0444 --mount=type=secret,id=ca,mode=0444 \
    --mount=type=cache,id=scope-uv,target=/tmp/uv-cache,uid=1000,gid=1000 \
    : install 'requirements.txt and dash 4.0.0'; \
    if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; \
    uv venv --quiet --no-project --python python3.11 /opt/env; \
    mkdir -p "$(dirname /tmp/spaces/0/requirements.txt)"; printf '%s\n' \
        pandas \
        > /tmp/spaces/0/requirements.txt; \
    mkdir -p /tmp/spaces/0; \
    cd /tmp/spaces/0; \
    uv pip install --python /opt/env -r requirements.txt -- dash==4.0.0
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
COPY --from=environment --chown=0:0 /opt/env /opt/env
COPY --chown=1000:1000 . /home/user/app/
ENV PYTHONUNBUFFERED="1"
ENV HOST="0.0.0.0"
ENV PORT="7860"
ENV DASH_DEBUG="false"
ENV DASH_HOT_RELOAD="false"
EXPOSE 7860
CMD ["python", "app.py"]

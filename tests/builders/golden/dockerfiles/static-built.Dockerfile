# Made for sdk: static. In a checkout of the repository: docker build --file <this> .
FROM spaces/site:1 AS site
ARG SPACES_SCOPE=scope
USER 1000:1000
COPY --chown=1000:1000 . /home/user/app/
RUN --mount=type=secret,id=network,mode=0444 --mount=type=secret,id=ca,mode=0444 \
    --mount=type=cache,id=scope-npm,target=/tmp/npm,uid=1000,gid=1000 \
    : site build; if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu; export CI=true npm_config_cache=/tmp/npm; \
    sh -c 'npm ci --no-audit --no-fund && npm run build'; \
    rm -rf /home/user/app/dist/node_modules

FROM spaces/static:1 AS system

FROM scratch AS facts
COPY --from=system /var/lib/dpkg/status /status

FROM system AS app
COPY --from=site --chown=1000:1000 ["/home/user/app/dist/", "/home/user/app/"]
EXPOSE 7860
CMD ["python3", "-P", "-m", "runtime_images.static.server", ".", "--port", "7860", "--index", "index.html"]

# Made for sdk: static. In a checkout of the repository: docker build --file <this> .

FROM spaces/static:1 AS system

FROM scratch AS facts
COPY --from=system /var/lib/dpkg/status /status

FROM system AS app
COPY --chown=1000:1000 . /home/user/app/
EXPOSE 7860
CMD ["python3", "-P", "-m", "runtime_images.static.server", ".", "--port", "7860", "--index", "index.html"]

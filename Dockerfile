# Four images from one root file system: `docker build --target nmi .`, `mic`, `broker` and `webhook`.
# tools/image_root.py puts the root together; `make image` does the same without Docker, and a test holds that both make
# the same files. The init is for what comes before a daemon can handle SIGTERM; NMI's supervisor
# keeps its sockets open while a crashed NMI starts again. Tags are semantic versions >= 2.0.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends mmdebstrap python3-venv
WORKDIR /src
RUN python3 -m venv /venv && /venv/bin/pip install --quiet 'pip==26.3'
COPY . /src
RUN /venv/bin/python tools/image_root.py /image

FROM scratch AS base
COPY --from=build /image /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title=podidentity org.opencontainers.image.licenses=MIT

FROM base AS nmi
ENTRYPOINT ["tini", "--", "podidentity", "supervise", "nmi"]

FROM base AS mic
ENTRYPOINT ["tini", "--", "mic"]

FROM base AS broker
USER 65532:65532
ENTRYPOINT ["tini", "--", "broker"]

FROM base AS webhook
USER 65532:65532
ENTRYPOINT ["tini", "--", "webhook"]

# Two images from one root file system: `docker build --target nmi .` and `docker build --target mic .`
# tools/image.py puts the root together; `make image` does the same without Docker. Tags are semantic versions >= 2.0.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip python3-venv
COPY . /src
WORKDIR /src
RUN python3 -m venv .venv && .venv/bin/pip install --quiet 'pip==26.3' \
 && .venv/bin/pip install --quiet --constraint constraints.txt . \
 && .venv/bin/python tools/image.py --root /image

FROM scratch AS base
COPY --from=build /image /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title=podidentity org.opencontainers.image.licenses=MIT

FROM base AS nmi
ENTRYPOINT ["nmi"]

FROM base AS mic
ENTRYPOINT ["mic"]

# The lab with a real Kubernetes built in, over the image of lab/Dockerfile:
#   docker build -f lab/Dockerfile -t podidentity-lab .
#   docker build -f lab/real.Dockerfile -t podidentity-lab:real .
# Kubernetes is compiled on the way: five minutes on two cores, and once, as the builder keeps a cache. A builder with
# volumes can mount what was built before below /usr/lib/podidentity instead: see docs/lab/container.md.
ARG LAB=podidentity-lab
FROM ${LAB} AS build
COPY . /src
ENV PYTHONPATH=/src/lab/src:/src/src
RUN --mount=type=cache,target=/root/.cache python3 /src/tools/lab_image.py /real

FROM ${LAB}
RUN apt-get update \
  && apt-get install --yes --no-install-recommends containerd containernetworking-plugins runc \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /real /usr/lib/podidentity
LABEL org.opencontainers.image.title=podidentity-lab-real
CMD ["up", "--kubernetes", "real", "--listen", "0.0.0.0:16443"]

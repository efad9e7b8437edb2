# The server; its index is mounted. In a clone, with an index made by `flashback index ... --out IDX`:
#
#   docker build --tag flashback .
#   docker run --rm --publish 8000:8000 --volume "$PWD/IDX:/index:ro" flashback
#
# Options of `flashback serve` follow the name of the image. For a GPU, take an index of PyTorch's with CUDA, such as
# `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130`, and `docker run --gpus all`.
FROM python:3.13-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY deploy/fill_store.py /usr/local/share/flashback/
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve,gguf,remote,postgres]'

# Models of the hub are downloaded into .cache, which may be a volume.
RUN useradd --create-home --uid 1000 flashback \
  && install --directory --owner flashback --group flashback /home/flashback/.cache
USER flashback
WORKDIR /home/flashback

EXPOSE 8000
HEALTHCHECK --start-period=2m CMD \
  ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["flashback", "serve", "--host", "0.0.0.0", "--index", "/index"]

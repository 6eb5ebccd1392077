# The service on processors, any x86-64 or arm64 machine. See docs/OPERATIONS.md for the images with GPUs.
#
#   docker build -t qwen-rerank .
#   docker run -p 127.0.0.1:9003:9003 -v qwen-rerank-models:/models qwen-rerank

ARG BASE=debian:12-slim

FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What is needed to compile, before the sources: this layer stays while only they change.
COPY Makefile ./
COPY scripts/deps.sh scripts/
RUN apt-get update && scripts/deps.sh build && rm -rf /var/lib/apt/lists/*
COPY . .
RUN cmake -S . -B build -G Ninja -DQR_TESTS=OFF && cmake --build build && DESTDIR=/out cmake --install build --prefix /usr --strip

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libcurl4 libgomp1 libjansson4 libmicrohttpd12 libssl3 libutf8proc2 libyaml-0-2 \
    && if [ "$(dpkg --print-architecture)" = amd64 ]; then apt-get install -y --no-install-recommends libdnnl2; fi \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /models qwen-rerank
COPY --from=build /out/usr/bin/qwen-rerank /usr/bin/
COPY --from=build /out/usr/share/man/man1/qwen-rerank.1 /usr/share/man/man1/
USER qwen-rerank
# The cache of the Hugging Face Hub, which models are found in by name. Anything else may be mounted there, too.
ENV HF_HOME=/models QWEN_RERANK_HOST=* QWEN_RERANK_LOG_FORMAT=json
VOLUME /models
EXPOSE 9003
# /ready is 503 until the model is loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${QWEN_RERANK_PORT:-9003} && printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["qwen-rerank"]
CMD ["serve"]

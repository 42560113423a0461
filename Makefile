# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# They need Python 3.11 or later, a C++ compiler and the package registry.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test check install blas clean

quickstart: install blas ## Make, fine-tune and train a tiny summariser; goes on where it was stopped
	@if [ -f runs/quickstart/config.json ]; then \
		echo "going on with runs/quickstart (remove it for a fresh run)"; \
		$(RUN) -m recipes.grpo_staged --resume runs/quickstart; \
	else \
		$(RUN) -m recipes.grpo_staged --config recipes/configs/quickstart.yaml; \
	fi

test: install blas ## All tests; those that need what is not here are skipped with a reason
	$(RUN) -m pytest

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

clean: ## Remove the environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

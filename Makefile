# Paths are relative: make cannot quote a folder with a space in its name.
PYTHON ?= python3
RUN := .venv/bin/python
PYTEST ?=
HAVE_PYTHON = command -v $(PYTHON) >/dev/null || { \
	echo "Finity needs Python 3.11 or newer and there is no $(PYTHON) here; name one with" \
	"\`make PYTHON=/path/to/python3 ...\`." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run test soak check proto migrate demo bench setup setup-dev clean

help: ## list these targets
	@printf '\nFinity: everything runs from here; python3 (3.11 or newer) is all it needs.\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@printf '\nSettings are environment variables: DATABASE_URL, REDIS_URL, FINITY_GATEWAY_PORT ...\n\n'

run: setup ## run the whole suite on this machine until Ctrl-C
	@$(RUN) -m suite run

test: setup-dev ## run every test on a PostgreSQL and Valkey of their own (PYTEST="-k login -x")
	@$(RUN) -m pytest $(PYTEST)

soak: setup-dev ## run the tests that are too large for every change
	@$(RUN) -m pytest -m soak --timeout 3600 $(PYTEST)

check: setup-dev ## lint, types, import rules, contracts, house rules
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports
	$(RUN) protos/generate.py --check
	.venv/bin/buf lint gen/finity.binpb --config buf.yaml
	.venv/bin/buf breaking gen/finity.binpb --against protos/baseline.binpb --config buf.yaml
	$(RUN) -m pyright
	$(RUN) -m tests.house

proto: setup-dev ## generate gen/ from protos/
	@$(RUN) protos/generate.py

migrate: setup ## apply pending migrations to DATABASE_URL or the embedded PostgreSQL
	@$(RUN) -m suite migrate

demo: setup ## tell a story against the running suite with real usage data
	@$(RUN) -m suite demo

bench: setup-dev ## measure this machine, side by side with a FastAPI peer
	@$(RUN) -m benchmarks

setup: ## install what `make run` needs into .venv
	@$(HAVE_PYTHON)
	@$(PYTHON) suite/bootstrap.py requirements-embedded.txt

setup-dev: ## install what tests and checks need as well
	@$(HAVE_PYTHON)
	@$(PYTHON) suite/bootstrap.py requirements-dev.txt

clean: ## delete .venv, caches and the development data of .finity
	@if [ -d .finity ] && [ -x $(RUN) ]; then unset FINITY_STATE_DIR; $(RUN) -m suite forget --yes; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

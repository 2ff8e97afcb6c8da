# Everything builds on .venv, made with pip from pyproject.toml and the pins of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: venv tour test test-faults test-ranks fuzz fuzz-atheris check format docs bench clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

tour: venv
	$(BIN)/truing tour --output runs/tour

# Two processes of one thread each; they take tests from each other's files, for one file takes as long as ten others.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

# Every kill and every failing file operation, for every method; `make test` has a few of each.
test-faults: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "faults or not faults" tests/faults

# Every method on 2, 3 and 4 processes, and two machines made of network namespaces; `make test` has a few of each.
test-ranks: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "ranks or not ranks" tests/ranks

# 100,000 unsound files for every reader; `make test` has 200 of each.
fuzz: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.fuzz --cases 100000

# The same readers, with the choices that a coverage-guided fuzzer makes: MINUTES of them for each.
fuzz-atheris: venv
	$(BIN)/pip install --quiet --disable-pip-version-check "atheris>=3.0"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.coverage --minutes $(or $(MINUTES),2)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/advice.py --check

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/advice.py

# make bench PAIRS=pairs.json DEMONSTRATIONS=demonstrations.json JUDGEMENTS=judgements.json; benchmarks/README.md says
# what they hold.
bench: venv
	@test -n "$(PAIRS)" -a -n "$(DEMONSTRATIONS)" -a -n "$(JUDGEMENTS)" || \
		{ echo "usage: make bench PAIRS=FILE DEMONSTRATIONS=FILE JUDGEMENTS=FILE"; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/dpo.py --pairs $(PAIRS) --corpus $(DEMONSTRATIONS)
	$(BIN)/python benchmarks/kto.py --judgements $(JUDGEMENTS) --corpus $(PAIRS) $(DEMONSTRATIONS)
	$(BIN)/python benchmarks/reward.py --pairs $(PAIRS) --corpus $(DEMONSTRATIONS)
	$(BIN)/python benchmarks/sft.py --demonstrations $(DEMONSTRATIONS) --corpus $(PAIRS)
	$(BIN)/python benchmarks/startup.py --pairs $(PAIRS) --demonstrations $(DEMONSTRATIONS)

clean:
	rm -rf .venv runs build dist

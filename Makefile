# Every target works on a fresh clone: the first one that needs it makes the virtual environment
# .venv inside the clone. Needed: make, and python3 (3.11 or 3.12) with its venv module.
PYTHON ?= python3
MINUTES ?= 10

# A sourced ROS 2 is used. One inside a virtual environment does not count: .venv would not see it.
ROS := $(shell test -n "$$ROS_DISTRO" \
    && $(PYTHON) -c 'import sys, rclpy; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null \
    && echo sourced || echo wheels)

ifeq ($(ROS),sourced)
VENV_OPTIONS := --system-site-packages
REQUIREMENTS := requirements.txt
else
REQUIREMENTS := requirements.txt requirements-ros.txt
# A ROS 2 made for another Python, or another environment's ROS wheels, must not be mixed in.
unexport PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
endif

# Nothing that is started from here talks to another machine.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

READY := .venv/ready-$(ROS)
SOURCES := idql_ros launch test training setup.py

.PHONY: demo test lint faults soak clean

demo: $(READY)
	.venv/bin/python -m training.demo

test: $(READY)
	.venv/bin/python -m pytest

# What happens to policy_node when things around it fail; the tables lie in faults_output.
faults: $(READY)
	PYTHONPATH=.:$$PYTHONPATH .venv/bin/python test/faults.py

# Policy and simulation with random faults: make soak MINUTES=10
soak: $(READY)
	PYTHONPATH=.:$$PYTHONPATH .venv/bin/python test/soak.py --minutes $(MINUTES)

# ament_flake8 and ament_pep257 are in .venv, or come with the sourced ROS 2.
lint: export PATH := $(CURDIR)/.venv/bin:$(PATH)
lint: $(READY)
	ruff check $(SOURCES)
	ament_flake8 $(SOURCES)
	ament_pep257 --add-ignore D213 D406 D407 D413 -- $(SOURCES)

# The file is written last: an interrupted installation leaves none, and the next call begins anew.
# So does a changed requirement, or a ROS 2 that was sourced or not sourced since.
$(READY): requirements.txt requirements-ros.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    "The workstation side needs Python 3.11 or 3.12, and $(PYTHON) is " \
	    + sys.version.split()[0] + ": make ... PYTHON=python3.12")'
	@echo 'Setting up .venv: once, some minutes, mostly downloads.'
	rm -rf .venv
	$(PYTHON) -m venv $(VENV_OPTIONS) .venv
	.venv/bin/python -m pip install $(REQUIREMENTS:%=-r %) -c constraints.txt
	@touch $@

clean:
	rm -rf .venv demo_output faults_output build install log *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

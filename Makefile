# Everything goes through ./run, which installs what is missing; CMD below runs in its environment.
.DEFAULT_GOAL := help
CMD = ./run do

demo:            ## two containers and the bridge between them
	./run demo

test:            ## every test (as root)
	./run test

unit:            ## the tests that start no container
	$(CMD) python -m pytest tests/unit tests/properties

system:          ## the tests with real containers (as root)
	./run test tests/system

senders:         ## the tests with real containers, on a machine whose kernel does not count (as root)
	NSB_TEST_EVIDENCE=senders ./run test tests/system

storm:           ## 2,000 kills, 1,000,000 messages, into docs/storm.md; about 6 minutes (as root)
	$(CMD) python -m tests.system.storm --kills 2000 --messages 1000000 --report docs/storm.md

classic-storm:   ## one queue, two types, a stranger in it: 1,000 kills, 100,000 questions; about 6 minutes (as root)
	$(CMD) python -m tests.system.classic_storm --kills 1000 --questions 100000

names-storm:     ## spools that keep names: 600 kills, names that repeat, patterns, refused files; about 5 minutes (as root)
	$(CMD) python -m tests.system.names_storm --kills 600

mqueue-storm:    ## POSIX queues with a queue, a spool and each other: 500 kills, 500,000 messages; about 5 minutes (as root)
	$(CMD) python -m tests.system.mqueue_storm --kills 500 --messages 500000

socket-losses:   ## what a kill loses of what programs have sent into a Unix socket: 100 kills of each type; about 2 minutes (as root)
	$(CMD) python -m tests.system.socket_losses --kills 100

nats-storm:      ## two hosts and three nats-servers: 340 strikes, 200,000 messages; about 10 minutes (as root)
	$(CMD) python -m tests.system.nats_storm --kills 340 --messages 200000

everything-storm: ## supervisor and all agents killed at once, 200 times, with the kernel's counter; about 4 minutes (as root)
	$(CMD) python -m tests.system.classic_storm --kills 200 --questions 20000 --everything

bench:           ## against C, the kernel and what else there is: a table, docs/bench.json and its picture (as root)
	./run bench

bench-check:     ## has anything become slower than benchmarks/recorded.json says? (as root)
	./run bench --check

comings:         ## 240 restarts of containers under load, into docs/comings.md; about 8 minutes (as root)
	$(CMD) python -m tests.system.comings --restarts 240 --report docs/comings.md

engines:         ## 20 restarts under load with each of the eleven kinds of container: a table; about 9 minutes (as root)
	$(CMD) python -m tests.system.comings --each 20

man:             ## man pages and shell completion, into build/share
	$(CMD) python -m nsbridge.supervisor.cli.commands.share build/share

health:          ## 50 SIGSTOPs, 50 kills of the supervisor, 10 minutes of full load without a false alarm (as root)
	$(CMD) python -m tests.system.health_storm --stops 50 --deadline 5 --supervisor-kills 50 --calm 600

scale:           ## 200 routes: start, status, idle CPU, memory, into docs/scale.md; about 4 minutes (as root)
	$(CMD) python -m benchmarks.scale --report docs/scale.md

scrape:          ## Prometheus for 60 s under load; what a scrape of 200 routes costs, into docs/web.md (as root)
	NSB_TEST_SCRAPE=60 ./run test -n 0 tests/system/test_web_prometheus.py
	$(CMD) python -m benchmarks.scrape --report docs/web.md

screens:         ## pictures of the web page, into docs/; 15 minutes, which its plots need
	$(CMD) python -m tests.system.web_screens docs

picture:         ## README's picture of the demo, docs/demo.svg (as root)
	$(CMD) python -m tests.system.demo_picture docs/demo.svg

readme:          ## README's commands as a new user runs them, pip's too; about a minute (as root)
	NSB_TEST_README=full ./run test tests/system/test_readme.py

site:            ## the documentation as a site with search, into build/site
	$(CMD) python docs/site/build.py build/site

upgrade:         ## from 0.1.0 with 10,000 messages pending in each kind of source, under load; about 5 minutes (as root)
	$(CMD) python -m tests.system.upgrade_load --pending 10000 --more 5000
	$(CMD) python -m tests.system.upgrade_load --pending 10000 --more 5000 --kill

restart:         ## from a kill to work again, beside runit and supervisord, into docs/restart.md; about 5 minutes (as root)
	$(CMD) python -m benchmarks.restart --report docs/restart.md

dist:            ## sdist and wheel, into dist; two builds of one commit are equal
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CMD) python -m build --outdir dist .

deb:             ## the Debian package, into dist (on Debian)
	./run deb

deb-check:       ## the package in a new Debian system: install, messages, upgrade, remove, purge; about 2 minutes (as root)
	./run deb-check

image-check:     ## the image on a base made here: the daemon with its capabilities, the web page as a user; about 2 minutes (as root)
	./run image-check

calls:           ## which system calls each agent may make, into docs/security.md
	$(CMD) python -m tests.calls_table

rotation:        ## eleven configurations of logrotate, 100,000 lines each, with late writers, stalls and kills; about 25 minutes (as root)
	$(CMD) python -m tests.system.log_rotation

fuzz:            ## 1,000,000 random and mutated inputs for each of agent, supervisor and control socket; 10 minutes where others work, too
	$(CMD) python -m tests.fuzz --count 1000000

style:           ## format, and mend what ruff can mend
	$(CMD) ruff format .
	$(CMD) ruff check --fix .

types:           ## mypy and pyright
	$(CMD) mypy
	$(CMD) pyright

coverage:        ## which lines the tests run, agents included (as root)
	$(CMD) coverage erase
	$(CMD) coverage run -m pytest
	$(CMD) coverage combine --quiet
	$(CMD) coverage report --show-missing --skip-covered

fresh:           ## README's two commands in a new Debian system (as root)
	tests/bare_machine.sh demo hello
	tests/bare_machine.sh test

clean:           ## what was built or cached here
	rm -rf .venv build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:            ## this list
	@sed -n 's/^\([a-z-]*\): *## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: site upgrade demo picture readme test unit system senders storm classic-storm names-storm mqueue-storm socket-losses mqueue-storm comings engines scale scrape restart rotation bench bench-check dist deb deb-check calls fuzz style types coverage fresh clean help everything-storm screens image-check

"""Experiments: methods compared on the same data, seeds and budgets, from one command.

protocols/NAME.yaml  what is trained on, what is evaluated, which arms there are
protocol.py   reads a protocol
data.py       public data sets -> task files of the run, digests, contamination
plan.py       arms x seeds x folds -> recipes, and what they will cost
kept.py       results that are there already: are they what the plan would make?
runs.py       plays them one by one; a fault is recorded and the rest goes on
collect.py    a run folder -> results/PROTOCOL/MODEL/ARM/SEED.json
stats.py      bootstrap over tasks and seeds, paired differences, tests, Holm
facts.py      how results were made: data, code, commands, tokens, time, what to know of them
tables.py     results -> Markdown tables; goals.py: what is claimed and found; plots.py: SVG
"""

"""Simulated crashes by the thousand (`confide chaos`): the product's own code over a simulated network, clock and disk.

- `chance`, `timeline`: what a seed draws, and what happens when
- `boundary`, `disk`, `database`: where a process may die, and what is left of its files
- `machine`: the product stands on these while a seed runs
- `consortium`, `training`: who takes part, and what each contributes, computable by itself
- `network`, `node`, `coordinator`: messages, and the two kinds of processes
- `scenario`, `mishaps`: what is to go wrong, and how it does
- `witness`, `invariants`: what was seen from outside, and what has to hold
- `world`: one seed; `worker`, `campaign`: many, over processes
- `planted`: bugs that a campaign has to find
"""

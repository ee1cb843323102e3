"""Results of papers, reproduced by simulation: one folder each with recipe, README, figures and plot.

    result.toml      what is run: a base specification, and for each run what differs from it
    results.json     what came out, with date, hardware, versions, seeds and configuration
    plot.png
    README.md        what the paper reports, what we got, why they differ

`confide reproduce NAME` runs one again; recipe.py reads result.toml, material.py makes data and model, running.py
runs, outcome.py writes table and plot.
"""

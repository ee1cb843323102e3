"""Subcommands of `confide` that this package brings."""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "bench": "Measure this machine: each benchmark prints a table and writes JSON.",
    "chaos": (
        "Crash a simulated federation by the thousand: kills, power cuts, partitions, full disks, clocks, old disks."
    ),
    "compare": (
        "Simulate each specification with each seed, and write one table with means, standard deviations and a plot."
    ),
    "demo": "Start a coordinator and nodes, train one model together, and score it against training alone.",
    "recipe": "Worked examples: list them, read one, run it on packaged text or on your own file.",
    "reproduce": "Run a published result again as a simulation; it can be cut off and goes on where it was.",
    "simulate": (
        "Simulate a federation with the product's own client, protocol and coordinator, on Flower's Ray engine."
    ),
}

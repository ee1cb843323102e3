"""What the console knows of the federation: everything of it from the coordinator's admin API, and nothing kept.

reading    answers with their age; the last one while the coordinator is silent
live       what happens, passed on to open pages as ticks
silence    tells people when the coordinator does not answer
run_words  a run in one line, its grid of rounds, its series
spending   privacy spent over time, as receipts tell
lineage    models from base to release, laid out for drawing
"""

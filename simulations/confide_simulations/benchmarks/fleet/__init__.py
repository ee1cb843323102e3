"""What a coordinator and its nodes cost.

An empty round (`round`, `stand_in`), idle nodes (`idle_nodes`, `light_nodes`) and many ended runs
(`history`).
"""

"""Federations of virtual nodes on Flower's Ray engine: the product's own client, protocol and coordinator.

partition   who gets which records
population  keys, roster, policies and data sets of the virtual nodes
engine      the one adapter to Flower's Ray engine and to Ray
worker      what runs in a Ray worker: many nodes' runtimes over one loaded model
link        the coordinator's way to virtual nodes
simulation  one run from specification to final model, resumable
scoring     the models of a run on held-out records
results     parquet, JSON, table and plot
comparison  several specifications over several seeds
"""

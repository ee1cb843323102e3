"""A run as data: one specification that both sides parse, hash and verify."""

"""`confide bench sealing` (`command`).

Our protocol (`ours`, `protocol`) beside Flower's SecAgg+ (`flower`), CKKS and none (`peers`).
"""

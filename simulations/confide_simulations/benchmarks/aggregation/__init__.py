"""`confide bench aggregation`.

Ways to average adapters, over one real task (`command`), their error (`error`), the rounds (`federation`).
"""

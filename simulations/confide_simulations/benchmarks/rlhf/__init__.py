"""`confide bench rlhf` (`command`).

Bytes on the wire (`traffic`), speed, privacy (`epsilon`) and DPO beside TRL (`dpo`).
"""

"""`confide bench scale`.

Sealing over cohorts and updates of growing size (`command`), each in a process (`worker`).
"""

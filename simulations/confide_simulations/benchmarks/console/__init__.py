"""`confide bench console`.

Every page over a large history (`command`, `world`), and many who watch one run (`watchers`).
"""

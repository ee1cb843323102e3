"""`confide bench privacy`: what privacy costs in quality (`command`, `task`, `plot`) and in time (`speed`)."""

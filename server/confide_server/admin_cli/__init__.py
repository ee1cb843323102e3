"""The administrator's and the coordinator operator's commands."""

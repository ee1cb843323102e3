"""Subcommands of `confide` that this package brings."""

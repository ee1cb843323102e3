"""The catalogue of the console: every word of its pages, and those in which alerts say what needs a person."""

from pathlib import Path

from confide.web.texts import Texts

from confide_server.alerts.words import PATH as ALERTS

PATH = Path(__file__).with_name("texts.en.toml")
TEXTS = Texts.read(PATH, ALERTS)

"""The catalogue of this package: every word of alerts, and of what needs a person."""

from pathlib import Path

from confide.web.texts import Texts

PATH = Path(__file__).with_name("texts.en.toml")
TEXTS = Texts.read(PATH)

"""How Confide's messages stand inside Flower's."""

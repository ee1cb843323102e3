"""Public prompts of the demo: written for it, about nobody. No prompt of the gate is one of training."""

_SUBJECTS = (
    "a film about a lighthouse keeper", "a concert in the rain", "a new pair of walking shoes", "a long train journey",
    "a cup of coffee at the station", "a documentary about bees", "a rainy weekend at home", "a museum of clocks",
    "a cookbook for beginners", "a bicycle with three gears", "a novel about two sisters", "a night at the theatre",
    "a phone with a small screen", "a walk along the river", "a comedy set in an office", "a hotel by the sea",
    "a board game for four people", "a bowl of vegetable soup", "a language course for adults", "a garden in spring",
    "a crime series in ten parts", "a chair made of oak", "a day at the zoo", "a podcast about history",
    "a radio play about the moon", "a restaurant on the corner", "a winter coat with large pockets", "a school choir",
    "a ferry across the bay", "a painting of a harbour", "a cartoon about a clever fox", "a market on Saturday",
    "a violin recital in a church", "a tent for two people", "a puppet play about pirates",
    "a bus tour of the old town", "a lecture on volcanoes", "a pan with a wooden handle", "a ghost story by the fire",
    "a swimming pool in July", "a magazine about trains", "a cable car to the summit",
    "a puzzle of a thousand pieces", "a jazz evening in a cellar", "a lamp for reading in bed",
    "a film about two chess players", "a bakery behind the town hall", "a kite in autumn", "a course in woodwork",
    "a boat trip at dawn", "a poem about the first snow", "a library on a hill",
)  # fmt: skip
_TRAINING = ("Write one sentence of review about {}.", "What did you think of {}? Answer in one sentence.")
_GATE = ("In one short sentence, say how you liked {}.", "Would you recommend {}? Say why, briefly.")


def training(count: int) -> list[str]:
    """At most 40: two forms over the first 20 subjects."""
    return [form.format(subject) for form in _TRAINING for subject in _SUBJECTS[:20]][:count]


def gate(count: int) -> list[str]:
    """At most 64: two other forms over other subjects."""
    return [form.format(subject) for form in _GATE for subject in _SUBJECTS[20:]][:count]


GENERAL = (
    "The canal was dug by hand in the years after the war, and the earth that came out of it became the hill on which "
    "the church now stands.",
    "To change a wheel, loosen the nuts while the car is still on the ground, raise it with the jack, and only then "
    "take the nuts off.",
    "Water boils at a lower temperature in the mountains, because the air presses on it less than it does by the sea.",
    "The committee met twice a month, kept minutes of what was decided, and sent them to every member within a week.",
)
"""Plain text on which a candidate must not have become worse."""

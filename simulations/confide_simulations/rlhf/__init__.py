"""`confide demo rlhf`: real people's judgements stay at four organizations, and a model is aligned by them."""

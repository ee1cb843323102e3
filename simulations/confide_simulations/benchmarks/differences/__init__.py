"""`confide bench differences`.

What sums of differing cohorts tell of one member (`command`): the federation that is looked at (`world`,
`training`), who looks (`attacks`), and how it is shown (`table`, `plot`).
"""

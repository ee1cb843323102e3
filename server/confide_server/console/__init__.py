"""The web console: an administrator runs the federation from a browser, an organization watches what concerns it.

A process of its own with the consortium's certificate of role `console`. It talks to the coordinator's admin API and
nothing else, keeps accounts and sessions in one SQLite file, and holds no key that could sign a run or a release: what
needs such a key is a command for the machine where the key is.

    command      `confide console`
    accounts/    people, passwords, second factors, sessions, tokens
    federation/  what the coordinator says, and how it is put into words
    web/         who may open what, and the pages
    roles        the table of who may do what
    words        every word of the pages, read from texts.en.toml
"""

# What `confide --help` says without importing it: the first paragraph of its own help.
SUMMARIES = {"console": "The web console: watch and direct the federation in a browser."}

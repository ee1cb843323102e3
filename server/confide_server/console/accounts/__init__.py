"""Who may use the console: people, their second factors, sessions, tokens, and how often somebody may guess.

Everything is in one SQLite file of the console's own (0600). What is handed out (links, cookies, tokens) is kept as a
hash; passwords as argon2id. Codes' seeds are kept as they are, since they must be computed with: who reads the file can
make codes, and needs the password as well.
"""

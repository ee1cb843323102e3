"""What Confide's two browser pages share: the console's and the node's.

    guard       which requests are let in, and the headers on every answer
    assets      style sheet, scripts and vendored libraries, served from memory under names that hold their hash
    pages       templates that escape everything, and what is written the same everywhere: times, ages, sizes
    texts       the words of the pages, one catalogue each
    secrets     what is handed out once and kept as a hash only
    serving     one port, with TLS or on loopback

There is no build step, no inline script or style, and nothing is fetched from elsewhere.
"""

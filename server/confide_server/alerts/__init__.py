"""What needs a person, told by webhook and mail (docs/alerts.md).

    needs      one line each, from the admin API's messages; the console's first page shows the same
    looking    asks the coordinator for everything that `needs` looks at
    settings   `alerts` in server.json: channels, quiet hours, what is told
    telling    which lines are due now: new, urgent, to be repeated, solved; never twice
    message    the one message, as a webhook's document and as a mail's text
    words      every word of it, read from texts.en.toml
    secret     a secret's file, which others may not read
    webhook    one signed POST, no redirect
    mail       one mail
    service    the thread that looks, sends, and comes again where a channel failed

Nothing here knows a database or a connection: whoever tells hands in how to ask and how to note. The coordinator tells
everything but its own silence, which a console tells (console.federation.silence).
"""

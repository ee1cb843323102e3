"""The console as a web application: who is asking, what they may, and the pages.

app        everything put together
access     every request past the table of roles, before its page runs
frame      what each page is shown in: name, navigation, how old the data is
forms      what came with a form, and what a change asks for
live       ticks that tell open pages to look again
pages/     one module per page
"""

"""From a file's bytes to blocks of text: one module a format, run in a child process with limits (`parent`, `child`)."""

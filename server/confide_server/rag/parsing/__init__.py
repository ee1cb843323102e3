"""From a file's bytes to blocks of text: one module a format, run in a child with limits (`parent`, `child`)."""

"""`confide demo rag`: three organizations' documents, searched, quoted, erased, and kept apart."""

"""`confide` as a module, for tests that start real processes: python -m tests.run_confide server start FOLDER."""

from confide.cli import main

if __name__ == "__main__":
    main()

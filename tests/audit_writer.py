"""A process that appends to a coordinator's audit log from three threads; it imports the database and nothing else."""

from concurrent.futures import ThreadPoolExecutor

from confide_server.state.database import Database, append_audit


def append_many(url: str, writer: int, each: int) -> int:
    """How many entries arrived. Raises StateError for the first that did not."""
    database = Database(url)
    try:
        with ThreadPoolExecutor(3) as pool:
            return sum(pool.map(lambda number: _append_one(database, writer, number), range(each)))
    finally:
        database.close()


def _append_one(database: Database, writer: int, number: int) -> int:
    with database.transaction() as session:
        append_audit(session, {"event": "example", "writer": writer, "number": number})
    return 1

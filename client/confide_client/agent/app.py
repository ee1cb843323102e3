"""The installed Flower ClientApp: the same object behind the agent and in Flower's simulation engine.

It knows nothing of how a node lives. A runtime is found for each message's context and answers its record:

    app = make_app(lambda context: runtime)                      # the agent: one node, one runtime
    app = make_app(lambda context: simulated[context.node_id])   # a simulation: one runtime per virtual node
"""

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

TRAIN, QUERY = "train.confide", "query.confide"
"""Message types: a step that trains, and every other step."""


class Runtime(Protocol):
    """What answers for one node."""

    def answer(self, record: RecordDict) -> RecordDict:
        """A signed reply to one instruction, as `envelope` packs both. Never raises for bad input."""


def make_app(runtime_of: Callable[[Context], Runtime]) -> ClientApp:
    """A ClientApp that answers Confide's messages, and no others."""
    app = ClientApp()

    def respond(message: Message, context: Context) -> Message:
        return Message(runtime_of(context).answer(message.content), reply_to=message)

    app.train("confide")(respond)
    app.query("confide")(respond)
    return app

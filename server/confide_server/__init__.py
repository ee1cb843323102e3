"""The coordinator: directs rounds over organizations whose updates it cannot see."""

"""How fast, within how much memory."""

"""State ↔ bytes: what crosses between a server and a device."""

"""The local servers: fetched, started, watched and stopped by Headrace itself, without Docker, root or system Java."""

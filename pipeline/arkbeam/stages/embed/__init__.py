"""Embed: turn the missing rows of a lane into requests, send them through the engine, return refs and failures."""

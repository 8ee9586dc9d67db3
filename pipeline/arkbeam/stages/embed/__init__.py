"""Embed: turn missing rows into requests, send them through the engine, return refs and failures."""

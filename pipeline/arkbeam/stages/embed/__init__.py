"""Embed: a lane's missing rows become requests, go through the engine, and come back as refs or failures."""

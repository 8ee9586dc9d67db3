"""Embed: a lane's missing rows become requests, go through the engine, and come back as refs or failures."""

from pipeline.embedding.lanes import Block, Outcomes, embed_lane
from pipeline.embedding.process import open_engine

__all__ = ["Block", "Outcomes", "embed_lane", "open_engine"]

"""Embed: a lane's missing rows become requests, go through the engine, and come back as refs or failures."""

from arkbeam.stages.embed.lanes import Block, Outcomes, embed_lane
from arkbeam.stages.embed.process import check_secrets, open_engine

__all__ = ["Block", "Outcomes", "check_secrets", "embed_lane", "open_engine"]

"""The stages Read, Plan, Embed and Publish as functions over Arrow tables, without Beam."""

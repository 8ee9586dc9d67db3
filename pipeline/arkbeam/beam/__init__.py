"""Beam glue: one PTransform for each stage, named after the pure function that it calls."""

"""The stages as Beam PTransforms, each named after the function in `stages/` that it calls; and the pipeline of all."""

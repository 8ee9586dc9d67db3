"""The stages as Beam PTransforms, named after the functions in `stages/` that they call; and the pipeline that joins them."""

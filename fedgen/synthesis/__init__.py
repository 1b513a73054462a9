"""A synthetic set: drafts of a generator, filtered, kept with a manifest that reproduces it, and never made twice."""

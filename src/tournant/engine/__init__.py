"""One run of a pipeline: source, channels, segments, lineage. Knows nothing of what a stage computes."""

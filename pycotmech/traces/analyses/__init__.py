"""The analyses of traces, one file each, called like its function."""

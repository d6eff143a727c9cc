"""argv, YAML and JSON -> one frozen config per command, which says where each value came from."""

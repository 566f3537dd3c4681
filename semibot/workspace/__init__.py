"""What a session keeps on disk: checkpoints, short-term memory, skills."""

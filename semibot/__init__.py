"""A Trio runtime for LLM agents."""

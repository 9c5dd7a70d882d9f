"""A graph as an application on Ray Serve: a deployment per model, OpenAI-like HTTP in front, keys and limits."""

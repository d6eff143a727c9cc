"""The HTTP API over any Engine: `swift deploy`. Speaks as the OpenAI and Anthropic clients expect."""

"""Questions to servers that speak OpenAI's chat protocol: their addresses, requests, retries and refusals."""

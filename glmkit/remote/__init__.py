"""Models that run elsewhere: behind a server that speaks OpenAI's protocol. No torch here."""

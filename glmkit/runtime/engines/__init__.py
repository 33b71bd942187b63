"""What can answer a conversation: models of this process and, later, of others."""

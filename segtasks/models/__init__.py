"""Networks. They know neither the trainer nor the command line and work in anybody's loop."""

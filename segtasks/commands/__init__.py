"""One module per subcommand of `segtasks` that is not the trainer's."""

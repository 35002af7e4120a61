"""One file a verb: arguments in, verbs out. Heavy imports wait until a verb runs, so that `--help` is instant."""

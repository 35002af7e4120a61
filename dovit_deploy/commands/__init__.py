"""One file a verb: flags in, one frozen request out. Heavy imports wait until it runs, so that `--help` is instant."""

"""Other people's implementations of networks that are read here, as small random models: nothing is downloaded."""

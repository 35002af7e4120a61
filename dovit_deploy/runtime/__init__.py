"""How does a frame become an answer? Session, settings, predictors, painting, and the run itself."""

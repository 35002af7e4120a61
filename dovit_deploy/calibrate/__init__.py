"""Which thresholds keep to a budget of accuracy, MACs or milliseconds?"""

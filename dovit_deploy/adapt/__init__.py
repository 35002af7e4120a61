"""How does a dense network become dynamic, without labels?"""

"""How do images and frames come in from outside, and how does a video go out?"""

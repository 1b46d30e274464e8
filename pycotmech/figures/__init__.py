"""The parts of pictures: frames, heat maps, bars, curves, words. Every function takes arrays and labels, and nothing here
imports any other part of the package."""

"""The parts of pictures: frames, heat maps, bars, words."""
